// SPDX-License-Identifier: Apache-2.0
// One upsampling stage of the U-Net's decoder in one pass, written once for every instruction set.
//
//   m = project relu dw relu ( up(A low) + B skip + b )     the first block, A and B its expansion
//   y = m + project2 relu dw2 relu expand2 m                the second block
//   and at the end of the network  sigmoid(1x1 y), where project2 and that 1x1 are one matrix
//
// The wide tensors never exist. The map is cut into strips of columns; down each strip, two rows at
// a time, rings of four rows hold what the 3 x 3 convolutions reach, so that all of it stays in the
// second-level cache:
//
//                 columns of a strip                    rows, from the top of the part to make
//   e (hidden)    x-2 ..................... x+n+1       pair j:   2j, 2j+1     (pair -1 before)
//   m, g (hidden2)    x-1 ............. x+n             pair j: 2j-1, 2j
//   y                     x ....... x+n-1               pair j: 2j-2, 2j-1
//
// Rows are planes of floats, and vectors lie along them: no width of the network wastes lanes, and
// a weight is one number for all of them. Lanes beyond a strip hold whatever they hold; nothing
// that counts is made of them.
//
// S gives the vectors: kLanes; kBlock outputs by kVectors vectors are kept in registers; and the
// operations used below.
#pragma once

#include <cstring>

#include "up_plan.hpp"

namespace lipsync::up {
namespace {  // every instruction set has its own copy of all this

inline int least(int a, int b) { return a < b ? a : b; }
inline int most(int a, int b) { return a > b ? a : b; }
inline std::size_t padded(int channels) { return static_cast<std::size_t>((channels + 3) / 4 * 4); }

// Floats from one channel's row to the next: an odd number of cache lines, so that the rows of
// many channels spread over all sets of a cache; with room to read a vector past the end.
template <class S>
std::size_t pitch_of(int columns) {
  const int lines = (columns + 2 * S::kLanes + 15) / 16;
  return static_cast<std::size_t>((lines | 1) * 16);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// f(Count<n>, first) for runs of vectors that cover `vectors`, n at most kVectors; where that is 3,
// four are two twos.
template <class S, class F>
inline void each_run(int vectors, F f) {
  for (int v = 0; v < vectors;) {
    const int left = vectors - v;
    if (S::kVectors == 3 && left >= 3 && left != 4) {
      f(Count<3>{}, v);
      v += 3;
    } else if (left >= 2) {
      f(Count<2>{}, v);
      v += 2;
    } else {
      f(Count<1>{}, v);
      v += 1;
    }
  }
}

// f(Count<outputs in the block>, first output)
template <class S, class F>
inline void each_block(std::size_t outputs, F f) {
  std::size_t o = 0;
  if constexpr (S::kBlock == 8)
    for (; o + 8 <= outputs; o += 8) f(Count<8>{}, o);
  for (; o < outputs; o += 4) f(Count<4>{}, o);
}

// M outputs of a 1x1 convolution at N vectors of pixels, all in registers.
template <class S, int M, int N>
struct Tile {
  typename S::V sum[M][N];

  [[gnu::always_inline]] void add(const float* weights, int inputs, const float* in,
                                  std::size_t pitch) {
    for (int k = 0; k < inputs; k++, weights += M, in += pitch) {
      typename S::V x[N];
      for (int n = 0; n < N; n++) x[n] = S::load(in + n * S::kLanes);
      for (int m = 0; m < M; m++) {
        const typename S::V w = S::all(weights[m]);
        for (int n = 0; n < N; n++) sum[m][n] = S::fma(w, x[n], sum[m][n]);
      }
    }
  }
};

// relu of a 3 x 3 depthwise convolution, two rows of `count` vectors at once, so that what is
// loaded serves both: `rows` are the four rows of a channel, from one column and one row before the
// first result. `pin` keeps a compiler from loading it twice all the same.
template <class S>
[[gnu::always_inline]] inline void depthwise_pair(const float* const rows[4], int count,
                                                  const float* nine, float bias, float* above,
                                                  float* below) {
  typename S::V w[9];
  for (int i = 0; i < 9; i++) w[i] = S::all(nine[i]);
  for (int n = 0; n < count; n++) {
    typename S::V a = S::all(bias), b = a;
    for (int row = 0; row < 4; row++)
      for (int i = 0; i < 3; i++) {
        typename S::V x = S::load(rows[row] + n * S::kLanes + i);
        S::pin(x);
        if (row < 3) a = S::fma(w[3 * row + i], x, a);
        if (row > 0) b = S::fma(w[3 * row - 3 + i], x, b);
      }
    S::store(above + n * S::kLanes, S::relu(a));
    S::store(below + n * S::kLanes, S::relu(b));
  }
}

// 1 / (1 + e^-x), within 2 units in the last place of 1; not a number stays so.
template <class S>
inline typename S::V sigmoid(typename S::V x) {
  using V = typename S::V;
  const V y = S::min(S::all(87.f), S::max(S::all(-87.f), S::sub(S::all(0.f), x)));
  const V n = S::round(S::mul(y, S::all(1.44269504f)));
  V r = S::fma(n, S::all(-0.693359375f), y);
  r = S::fma(n, S::all(2.12194440e-4f), r);
  constexpr float kTerms[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                              1.6666665459e-1f, 5.0000001201e-1f};
  V p = S::all(1.9875691500e-4f);
  for (const float term : kTerms) p = S::fma(p, r, S::all(term));
  p = S::fma(S::mul(p, r), r, S::add(r, S::all(1.f)));
  return S::div(S::all(1.f), S::fma(p, S::power_of_two(n), S::all(1.f)));
}

// Where a bilinear upsampling (corners aligned) reads: from `first`, `share` of the next.
struct Source {
  int first;
  float share;
};
inline Source source_of(int at, int size) {
  const int half = size / 2;
  const float f =
      static_cast<float>(at) * static_cast<float>(half - 1) / static_cast<float>(size - 1);
  const int first = least(static_cast<int>(f), half - 2);
  return {first, f - static_cast<float>(first)};
}

// Widths of the strips: as wide as the cache allows, and where that leaves a choice, those that
// waste the fewest vectors.
template <class S>
inline int strip_columns(const Plan& p) {
  constexpr long long kCache = 700 << 10;  // bytes: most of a second-level cache of 1 MB
  const long long each = 4LL * (4LL * (p.hidden + p.hidden2 + p.middle) + 2 * p.hidden + p.skip);
  const long long needed = (each * (p.columns + 4) + kCache - 1) / kCache;
  const int fewest = needed < p.columns ? most(1, static_cast<int>(needed)) : p.columns;
  int best = 0, cost = 0;
  for (int n = fewest; n <= fewest + 2; n++) {
    const int columns = (p.columns + n - 1) / n;
    const int vectors = n * ((columns + 4 + S::kLanes - 1) / S::kLanes);
    if (best == 0 || vectors < cost) best = columns, cost = vectors;
  }
  return best;
}

// Hands out parts of the scratch memory, each at a cache line; with no memory, only counts.
struct Scratch {
  float* memory;
  std::size_t used = 0;
  float* take(std::size_t floats) {
    float* at = memory ? memory + used : nullptr;
    used += (floats + 15) / 16 * 16;
    return at;
  }
};

template <class S>
class Strip {
 public:
  Strip(const Plan& plan, Scratch& scratch)
      : p_(plan),
        width_(strip_columns<S>(plan)),
        pitch_(pitch_of<S>(width_ + 4)),
        low_pitch_(pitch_of<S>((width_ + 4) / 2 + 3)),
        hidden_(padded(plan.hidden)),
        middle_(padded(plan.middle)),
        hidden2_(padded(plan.hidden2)) {
    skip_row_ = scratch.take(static_cast<std::size_t>(p_.skip) * pitch_);
    low_row_ = scratch.take(static_cast<std::size_t>(p_.low) * low_pitch_);
    for (float*& w : wide_low_) w = scratch.take(hidden_ * pitch_);
    between_ = scratch.take(S::kBlock * low_pitch_);
    for (float*& row : e_) row = scratch.take(hidden_ * pitch_);
    for (float*& row : m_) row = scratch.take(middle_ * pitch_);
    for (float*& row : g_) row = scratch.take(hidden2_ * pitch_);
    const std::size_t wide = hidden_ > hidden2_ ? hidden_ : hidden2_;
    for (float*& row : filtered_) row = scratch.take(wide * kTile);
    result_ = scratch.take(middle_ * kTile);
    shares_ = scratch.take(pitch_);
    lanes_ = reinterpret_cast<std::int32_t*>(scratch.take(pitch_));
    bases_ = reinterpret_cast<std::int32_t*>(scratch.take(pitch_));
  }

  void run(const float* low, const float* skip, float* planes, std::uint8_t* pixels) {
    low_ = low, skip_ = skip, planes_ = planes, pixels_ = pixels;
    for (int x = p_.x; x < p_.x + p_.columns; x += width_) {
      begin(x, least(width_, p_.x + p_.columns - x));
      expand_pair(-1);
      for (int j = 0; j <= (p_.rows + 1) / 2; j++) {
        expand_pair(j);
        middle_pair(j);
        if (j > 0) result_pair(j);
      }
    }
  }

 private:
  static constexpr int kRun = 48 / S::kLanes;  // vectors
  static constexpr std::size_t kTile = 48;

  static int vectors(int columns) { return (columns + S::kLanes - 1) / S::kLanes; }
  static std::size_t slot(int row) { return static_cast<std::size_t>(row & 3); }

  void begin(int x, int columns) {
    x_ = x, columns_ = columns;
    held_[0] = held_[1] = -1;
    low_x_ = source_of(most(0, x - 2), p_.width).first;
    low_columns_ = source_of(least(p_.width - 1, x + columns + 1), p_.width).first + 2 - low_x_;
    const int count = vectors(columns + 4) * S::kLanes;
    for (int i = 0; i < count; i++) {
      const Source s =
          source_of(most(0, least(least(p_.width - 1, x + columns + 1), x - 2 + i)), p_.width);
      const int v = i / S::kLanes;
      if (i % S::kLanes == 0) bases_[v] = s.first - low_x_;
      lanes_[i] = s.first - low_x_ - bases_[v];
      shares_[i] = s.share;
    }
    std::memset(skip_row_, 0, static_cast<std::size_t>(p_.skip) * pitch_ * sizeof(float));
    std::memset(low_row_, 0, static_cast<std::size_t>(p_.low) * low_pitch_ * sizeof(float));
  }

  // The convolutions pad with zeros: columns of a row that lie beyond the map become so.
  void clear_outside(float* row, std::size_t channels, int first, int columns) {
    const int left = most(0, -first), right = least(columns, p_.width - first);
    if (left == 0 && right == columns) return;
    for (std::size_t c = 0; c < channels; c++, row += pitch_) {
      for (int i = 0; i < left; i++) row[i] = 0.f;
      for (int i = right; i < columns; i++) row[i] = 0.f;
    }
  }

  // Row `y` of the map below, expanded, and widened to the strip's columns; two of them are held.
  const float* wide_low(int y) {
    float* out = wide_low_[y & 1];
    if (held_[y & 1] == y) return out;
    held_[y & 1] = y;
    const std::size_t wide = static_cast<std::size_t>(p_.width / 2);
    const std::size_t plane = wide * static_cast<std::size_t>(p_.height / 2);
    const float* in = low_ + static_cast<std::size_t>(y) * wide + static_cast<std::size_t>(low_x_);
    for (int c = 0; c < p_.low; c++)
      std::memcpy(low_row_ + static_cast<std::size_t>(c) * low_pitch_,
                  in + static_cast<std::size_t>(c) * plane,
                  static_cast<std::size_t>(low_columns_) * sizeof(float));
    each_block<S>(hidden_, [&]<int M>(Count<M>, std::size_t o) {
      each_run<S>(vectors(low_columns_), [&]<int N>(Count<N>, int v) {
        Tile<S, M, N> t;
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++)
            t.sum[m][n] = S::all(p_.expand_bias[o + static_cast<std::size_t>(m)]);
        t.add(p_.expand_low + o * static_cast<std::size_t>(p_.low), p_.low,
              low_row_ + v * S::kLanes, low_pitch_);
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++)
            S::store(between_ + static_cast<std::size_t>(m) * low_pitch_ + (v + n) * S::kLanes,
                     t.sum[m][n]);
      });
      for (int v = 0; v < vectors(columns_ + 4); v++) {
        const typename S::V share = S::load(shares_ + v * S::kLanes);
        const auto lanes = S::lanes(lanes_ + v * S::kLanes);
        const float* at = between_ + bases_[v];
        float* to = out + o * pitch_ + static_cast<std::size_t>(v * S::kLanes);
        for (int m = 0; m < M; m++, at += low_pitch_, to += pitch_) {
          typename S::V a, b;
          S::pick(at, lanes, a, b);
          S::store(to, S::fma(S::sub(b, a), share, a));
        }
      }
    });
    return out;
  }

  // Rows 2j and 2j + 1 (of the part) of e: expanded, added, relu.
  void expand_pair(int j) {
    for (int row = 2 * j; row < 2 * j + 2; row++) expand(row);
  }

  void expand(int row) {
    float* out = e_[slot(row)];
    const int y = p_.y + row;
    if (y < p_.skip_y || y >= p_.skip_y + p_.skip_rows) {  // beyond the map, or not needed
      std::memset(out, 0, hidden_ * pitch_ * sizeof(float));
      return;
    }
    const int from = most(x_ - 2, p_.skip_x);
    const int to = least(x_ + columns_ + 2, p_.skip_x + p_.skip_columns);
    const std::size_t plane =
        static_cast<std::size_t>(p_.skip_rows) * static_cast<std::size_t>(p_.skip_columns);
    const float* in =
        skip_ +
        static_cast<std::size_t>(y - p_.skip_y) * static_cast<std::size_t>(p_.skip_columns) +
        (from - p_.skip_x);
    for (int c = 0; c < p_.skip; c++)
      std::memcpy(skip_row_ + static_cast<std::size_t>(c) * pitch_ + (from - (x_ - 2)),
                  in + static_cast<std::size_t>(c) * plane,
                  static_cast<std::size_t>(to - from) * sizeof(float));
    const Source s = source_of(y, p_.height);
    const float *above = wide_low(s.first), *below = wide_low(s.first + 1);
    const typename S::V share = S::all(s.share);
    each_block<S>(hidden_, [&]<int M>(Count<M>, std::size_t o) {
      each_run<S>(vectors(columns_ + 4), [&]<int N>(Count<N>, int v) {
        Tile<S, M, N> t;
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++) {
            const std::size_t at = (o + static_cast<std::size_t>(m)) * pitch_ +
                                   static_cast<std::size_t>((v + n) * S::kLanes);
            const typename S::V a = S::load(above + at);
            t.sum[m][n] = S::fma(S::sub(S::load(below + at), a), share, a);
          }
        t.add(p_.expand_high + o * static_cast<std::size_t>(p_.skip), p_.skip,
              skip_row_ + v * S::kLanes, pitch_);
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++)
            S::store(out + (o + static_cast<std::size_t>(m)) * pitch_ + (v + n) * S::kLanes,
                     S::relu(t.sum[m][n]));
      });
    });
    clear_outside(out, hidden_, x_ - 2, columns_ + 4);
  }

  // relu(depthwise) of two rows and some vectors into filtered_.
  void filter(float* const ring[4], int first, int v, int count, int channels, const float* nine,
              const float* bias) {
    const float* rows[4];
    for (int i = 0; i < 4; i++) rows[i] = ring[slot(first + i)] + v * S::kLanes;
    for (int c = 0; c < channels; c++) {
      const std::size_t to = static_cast<std::size_t>(c) * kTile;
      depthwise_pair<S>(rows, count, nine + 9 * c, bias[c], filtered_[0] + to, filtered_[1] + to);
      for (const float*& row : rows) row += pitch_;
    }
  }

  // Rows 2j - 1 and 2j of m, and of g, its expansion after the relu.
  void middle_pair(int j) {
    const int all = vectors(columns_ + 2);
    for (int first = 0; first < all; first += kRun) {
      const int count = least(kRun, all - first);
      filter(e_, 2 * j - 2, first, count, p_.hidden, p_.depthwise, p_.depthwise_bias);
      each_run<S>(count, [&]<int N>(Count<N>, int v) {
        for (int i = 0; i < 2; i++) {
          float* m = m_[slot(2 * j - 1 + i)] + (first + v) * S::kLanes;
          float* g = g_[slot(2 * j - 1 + i)] + (first + v) * S::kLanes;
          convolve<N>(p_.project, p_.project_bias, middle_, p_.hidden, filtered_[i] + v * S::kLanes,
                      kTile, m, pitch_, [](typename S::V x) { return x; });
          convolve<N>(p_.expand2, p_.expand2_bias, hidden2_, p_.middle, m, pitch_, g, pitch_,
                      [](typename S::V x) { return S::relu(x); });
        }
      });
    }
    for (int row = 2 * j - 1; row <= 2 * j; row++) {
      float* g = g_[slot(row)];
      if (p_.y + row < 0 || p_.y + row >= p_.height)
        std::memset(g, 0, hidden2_ * pitch_ * sizeof(float));
      else
        clear_outside(g, hidden2_, x_ - 1, columns_ + 2);
    }
  }

  template <int N, class F>
  static void convolve(const float* weights, const float* bias, std::size_t outputs, int inputs,
                       const float* in, std::size_t in_pitch, float* out, std::size_t out_pitch,
                       F last) {
    each_block<S>(outputs, [&]<int M>(Count<M>, std::size_t o) {
      Tile<S, M, N> t;
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) t.sum[m][n] = S::all(bias[o + static_cast<std::size_t>(m)]);
      t.add(weights + o * static_cast<std::size_t>(inputs), inputs, in, in_pitch);
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
          S::store(out + (o + static_cast<std::size_t>(m)) * out_pitch + n * S::kLanes,
                   last(t.sum[m][n]));
    });
  }

  // Rows 2j - 2 and 2j - 1 of the result.
  void result_pair(int j) {
    const int all = vectors(columns_);
    for (int first = 0; first < all; first += kRun) {
      const int count = least(kRun, all - first);
      filter(g_, 2 * j - 3, first, count, p_.hidden2, p_.depthwise2, p_.depthwise2_bias);
      each_run<S>(count, [&]<int N>(Count<N>, int v) {
        const int x = (first + v) * S::kLanes, some = least(N * S::kLanes, columns_ - x);
        for (int i = 0; i < 2 && 2 * j - 2 + i < p_.rows; i++) {
          const float* filtered = filtered_[i] + v * S::kLanes;
          const float* m = m_[slot(2 * j - 2 + i)] + x + 1;
          const std::size_t at =
              static_cast<std::size_t>(2 * j - 2 + i) * static_cast<std::size_t>(p_.columns) +
              static_cast<std::size_t>(x_ - p_.x + x);
          if (p_.picture)
            picture<N>(filtered, m, at, some);
          else
            features<N>(filtered, m, at, some);
        }
      });
    }
  }

  template <int N>
  void features(const float* filtered, const float* m, std::size_t at, int count) {
    convolve<N>(p_.project2, p_.project2_bias, middle_, p_.hidden2, filtered, kTile, result_, kTile,
                [](typename S::V x) { return x; });
    const std::size_t plane =
        static_cast<std::size_t>(p_.rows) * static_cast<std::size_t>(p_.columns);
    for (int o = 0; o < p_.middle; o++) {
      float* r = result_ + static_cast<std::size_t>(o) * kTile;
      for (int n = 0; n < N; n++)
        S::store(r + n * S::kLanes,
                 S::add(S::load(r + n * S::kLanes),
                        S::load(m + static_cast<std::size_t>(o) * pitch_ + n * S::kLanes)));
      std::memcpy(planes_ + static_cast<std::size_t>(o) * plane + at, r,
                  static_cast<std::size_t>(count) * sizeof(float));
    }
  }

  template <int N>
  void picture(const float* filtered, const float* m, std::size_t at, int count) {
    Tile<S, 3, N> t;
    for (int c = 0; c < 3; c++)
      for (int n = 0; n < N; n++) t.sum[c][n] = S::all(p_.project2_bias[c]);
    t.add(p_.project2, p_.hidden2, filtered, kTile);
    t.add(p_.direct, p_.middle, m, pitch_);
    const std::size_t plane =
        static_cast<std::size_t>(p_.rows) * static_cast<std::size_t>(p_.columns);
    alignas(64) float values[3][kTile];
    alignas(64) std::int32_t levels[3][kTile];
    for (int c = 0; c < 3; c++)
      for (int n = 0; n < N; n++) {
        const typename S::V s = sigmoid<S>(t.sum[c][n]);
        if (planes_)
          S::store(values[c] + n * S::kLanes, s);
        else  // the order of max's arguments makes black of what is not a number
          S::store_truncated(levels[c] + n * S::kLanes,
                             S::min(S::max(S::mul(s, S::all(255.f)), S::all(0.f)), S::all(255.f)));
      }
    if (planes_) {
      for (std::size_t c = 0; c < 3; c++)
        std::memcpy(planes_ + c * plane + at, values[c],
                    static_cast<std::size_t>(count) * sizeof(float));
      return;
    }
    std::uint8_t* to = pixels_ + 3 * at;
    for (int i = 0; i < count; i++, to += 3)
      for (int c = 0; c < 3; c++) to[c] = static_cast<std::uint8_t>(levels[2 - c][i]);
  }

  const Plan& p_;
  const int width_;
  const std::size_t pitch_, low_pitch_, hidden_, middle_, hidden2_;
  float *skip_row_, *low_row_, *wide_low_[2], *between_, *e_[4], *m_[4], *g_[4], *filtered_[2],
      *result_, *shares_;
  std::int32_t *lanes_, *bases_;
  int x_ = 0, columns_ = 0, low_x_ = 0, low_columns_ = 0, held_[2] = {-1, -1};
  const float *low_ = nullptr, *skip_ = nullptr;
  float* planes_ = nullptr;
  std::uint8_t* pixels_ = nullptr;
};

template <class S>
std::size_t scratch_of(const Plan& plan) {
  Scratch count{nullptr};
  Strip<S> strip(plan, count);
  return count.used;
}

template <class S>
void run(const Plan& plan, const float* low, const float* skip, float* planes, std::uint8_t* pixels,
         float* scratch) {
  Scratch memory{scratch};
  Strip<S>(plan, memory).run(low, skip, planes, pixels);
}

}  // namespace
}  // namespace lipsync::up
