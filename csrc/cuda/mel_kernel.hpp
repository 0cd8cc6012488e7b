// SPDX-License-Identifier: Apache-2.0
// clang-format off
// Mel windows for the audio encoder, all of a batch in one launch; a block makes one row of one
// window. Its CPU twin is mel_rows_at of mel.hpp, which it agrees with to 1e-4 for sounds of any
// level in [-1, 1].
//
//   800 samples ─ pre-emphasis ─ whole numbers by the row's peak ─ Hann ─ fold a and 32 - a   Local → even, odd
//     ─ 25 real transforms of 32 ─ z[c][b] ─ turn, fold b and 25 - b                          → sum, difference
//     ─ 17 complex transforms of 25 ─ 401 magnitudes ─ 80 bands ─ level, clip                 → out
//
// Why whole numbers. The twin computes in double precision, which many GPUs do at 1/64 of the
// speed. float32 is not enough: a loud sound leaves a rounding error of some 1e-7 of its own size
// in every bin, and a quiet band near the bottom of the scale is a magnitude of 1e-4, 1/4000000 of
// a full-scale sound's. numpy's float32 transform differs from the twin by 3e-4 on full-scale
// square waves; this kernel by 3e-5. A transform of 32-bit samples and factors, summed in 64 bits,
// costs one multiply-add (IMAD.WIDE) a product, and gives the same bits on every machine. As only
// the row itself scales it, a row does not depend on the window or batch that it comes in.
//
// No sum can overflow. With A < 2^e the largest |y| of the row: each class of samples b has Hann
// weights that add up to 16, so |z| < 16 A and |sum| < 32 A, and a bin is below 400 A:
//
//   y         Q(30-e)  below 2^30            z        Q(27-e)  below 2^31 - 100
//   32-sums   Q(59-e)  below 2^63 - 2^38     sum      Q(26-e)  below 2^31 - 100
//                                            25-sums  Q(54-e)  below 2^62.7
// clang-format on
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "cuda/half.hpp"
#include "cuda/mel_tables.hpp"

namespace lipsync::cuda {

struct MelKernel {
  static constexpr int kRows = 16;  // of a window
  static constexpr int kThreads = 256, kPhases = 8;
  static constexpr int kA = MelTables::kA, kB = MelTables::kB, kC = MelTables::kC;
  static constexpr int kFolds = kC * kB;    // pairs of samples
  static constexpr int kParts = 3;          // of a band, a thread each
  static constexpr int kHalf = kB / 2 + 1;  // 13
  static constexpr int kPeaks = 16;

  // Multiply-adds of one row: window, transforms of 32, turns, transforms of 25.
  static constexpr int kProducts =
      mel::kFft + kB * 9 * 32 + kB * kC * 4 + kC * kHalf * (2 * kHalf + 2 * (kHalf - 1));

  // windows[n] = (offset, low, high, previous): row r of window n covers the samples from
  // offset + 200 r on, all of which are zero but low <= i < high; the sample before `low` counts
  // for the pre-emphasis if `previous` is not 0.
  struct Args {
    const void* pcm;
    std::int64_t samples;  // in pcm: nothing outside is read, whatever the windows say
    const std::int32_t* windows;
    const MelTables* tables;
    void* out;  // windows x 80 x 16
    bool is_int16;
    Real type;
  };

  struct Shared {
    std::int32_t cos32[kA], cos25[kB], sin25[kB];
    float peak[kThreads], peaks[kPeaks];
    std::int32_t even[kFolds], odd[kFolds];               // x[a] ± x[32-a], index a * 25 + b
    std::int32_t z_re[kC * kB], z_im[kC * kB];            // index c * 25 + b
    std::int32_t sum_re[kHalf * kC], sum_im[kHalf * kC];  // z[b] ± z[25-b], index b * 17 + c
    std::int32_t diff_re[kHalf * kC], diff_im[kHalf * kC];
    float magnitude[mel::kBins];
    float part[mel::kBands * kParts];
  };

  // y = high + low, for the two pairs of samples that are this thread's.
  struct Local {
    float high[2][2], low[2][2];
  };

  template <int Phase>
  LIPSYNC_HD static void phase(const Args& args, Shared& s, Local& local, const Thread& who) {
    const MelTables& tables = *args.tables;
    const int t = who.number;
    if constexpr (Phase == 0) load(args, s, local, who);
    if constexpr (Phase == 1) {
      if (t < kPeaks) {
        float peak = 0.0f;
        for (int k = t; k < kThreads; k += kPeaks) peak = fmaxf(peak, s.peak[k]);
        s.peaks[t] = peak;
      }
    }
    if constexpr (Phase == 2) fold(tables, s, local, t);
    if constexpr (Phase == 3) {
      if (t < 9 * kB) transform32(s, t / kB, t % kB);
    }
    if constexpr (Phase == 4) {
      if (t < kHalf * kC) turn(tables, s, t / kC, t % kC);
    }
    if constexpr (Phase == 5) {
      if (t < kHalf * kC) transform25(s, t / kC, t % kC);
    }
    if constexpr (Phase == 6) {
      if (t < mel::kBands * kParts) add_up(tables, s, t / kParts, t % kParts);
    }
    if constexpr (Phase == 7) {
      if (t < mel::kBands) write(args, s, who, t);
    }
  }

 private:
  using I64 = std::int64_t;

  LIPSYNC_HD static I64 product(std::int32_t a, std::int32_t b) { return static_cast<I64>(a) * b; }
  template <int Bits>
  LIPSYNC_HD static std::int32_t rounded(I64 value) {
    return static_cast<std::int32_t>((value + (I64{1} << (Bits - 1))) >> Bits);
  }

  // Sample a * 25 + b of the two that a pair (a, 32 - a) has; -1: there is no second one.
  LIPSYNC_HD static int sample_of(int pair, int which) {
    const int a = pair / kB, b = pair % kB;
    if (which == 0) return pair;
    return a == 0 || a == kA / 2 ? -1 : (kA - a) * kB + b;
  }

  LIPSYNC_HD static float sample(const Args& args, I64 at) {
    if (at < 0 || at >= args.samples) return 0.0f;
    return args.is_int16 ? static_cast<float>(static_cast<const std::int16_t*>(args.pcm)[at]) *
                               (1.0f / 32768.0f)
                         : static_cast<const float*>(args.pcm)[at];
  }

  // Pre-emphasis, exact to 2^-47 of its terms: x - 0.97 x' = high + low.
  LIPSYNC_HD static void emphasise(float x, float before, float& high, float& low) {
    constexpr float k = static_cast<float>(mel::kPreemphasis);
    constexpr float rest = static_cast<float>(mel::kPreemphasis - static_cast<double>(k));
    const float p = k * before;
    const float p_error = fmaf(k, before, -p) + rest * before;
    high = x - p;
    const float q = high - x;
    low = ((x - (high - q)) - (p + q)) - p_error;
  }

  LIPSYNC_HD static void load(const Args& args, Shared& s, Local& local, const Thread& who) {
    const int t = who.number;
    if (t < kA) s.cos32[t] = args.tables->cos32[t];
    if (t < kB) {
      s.cos25[t] = args.tables->cos25[t];
      s.sin25[t] = args.tables->sin25[t];
    }
    const std::int32_t* window = args.windows + 4 * static_cast<I64>(who.x);
    const I64 from = static_cast<I64>(window[0]) + mel::kHop * who.y;
    const std::int32_t low = window[1], high = window[2];
    const bool previous = window[3] != 0;
    float peak = 0.0f;
    LIPSYNC_UNROLL
    for (int turn = 0; turn < 2; turn++) {
      LIPSYNC_UNROLL
      for (int which = 0; which < 2; which++) {
        float &y = local.high[turn][which], &rest = local.low[turn][which];
        y = rest = 0.0f;
        const int pair = t + turn * kThreads;
        const int n = pair < kFolds ? sample_of(pair, which) : -1;
        const I64 at = from + n;
        if (n < 0 || at < low || at >= high) continue;
        const float before = at > low || previous ? sample(args, at - 1) : 0.0f;
        emphasise(sample(args, at), before, y, rest);
        const float size = fabsf(y);
        peak = fmaxf(peak, size <= FLT_MAX ? size : INFINITY);  // not a number: infinite
      }
    }
    s.peak[t] = peak;
  }

  // The row's largest |y|; infinite if the row holds what is no number.
  LIPSYNC_HD static float peak_of(const Shared& s) {
    float peak = 0.0f;
    for (int k = 0; k < kPeaks; k++) peak = fmaxf(peak, s.peaks[k]);
    return peak;
  }

  // e: the peak lies below 2^e. Rows too quiet to leave the bottom of the scale share one.
  LIPSYNC_HD static int exponent_of(float peak) {
    if (!(peak <= FLT_MAX)) return 0;
    int e = 0;
    frexpf(peak, &e);
    return e < -40 ? -40 : e;
  }

  LIPSYNC_HD static void fold(const MelTables& tables, Shared& s, const Local& local, int t) {
    const float peak = peak_of(s);
    const bool broken = !(peak <= FLT_MAX);
    const float scale = ldexpf(1.0f, 30 - exponent_of(peak));
    LIPSYNC_UNROLL
    for (int turn = 0; turn < 2; turn++) {
      const int pair = t + turn * kThreads;
      if (pair >= kFolds) continue;
      std::int32_t x[2] = {0, 0};
      LIPSYNC_UNROLL
      for (int which = 0; which < 2; which++) {
        const int n = sample_of(pair, which);
        if (n < 0 || broken) continue;
        const float high = local.high[turn][which] * scale, whole = rintf(high);
        const float rest = rintf((high - whole) + local.low[turn][which] * scale);
        const std::int32_t y = static_cast<std::int32_t>(whole) + static_cast<std::int32_t>(rest);
        x[which] = rounded<30>(product(y, tables.window[n]));
      }
      s.even[pair] = x[0] + x[1];
      s.odd[pair] = x[0] - x[1];
    }
  }

  // The 32 samples of class b at c and 16 - c, which differ in the signs of the odd a.
  LIPSYNC_HD static void transform32(Shared& s, int c, int b) {
    I64 cos_even = 0, cos_odd = 0, sin_even = 0, sin_odd = 0;
    for (int a = 0; a < kC; a += 2) {
      const int place = a * c % kA;
      cos_even += product(s.even[a * kB + b], s.cos32[place]);
      if (a > 0 && a < kA / 2)
        sin_even += product(s.odd[a * kB + b], s.cos32[(place + 3 * kA / 4) % kA]);
    }
    for (int a = 1; a < kC; a += 2) {
      const int place = a * c % kA;
      cos_odd += product(s.even[a * kB + b], s.cos32[place]);
      sin_odd += product(s.odd[a * kB + b], s.cos32[(place + 3 * kA / 4) % kA]);
    }
    s.z_re[c * kB + b] = rounded<32>(cos_even + cos_odd);
    s.z_im[c * kB + b] = rounded<32>(-sin_even - sin_odd);
    if (c == kA / 4) return;
    s.z_re[(kA / 2 - c) * kB + b] = rounded<32>(cos_even - cos_odd);
    s.z_im[(kA / 2 - c) * kB + b] = rounded<32>(sin_even - sin_odd);
  }

  // Class b of column c and its counterpart 25 - b, each turned by its place, then folded.
  LIPSYNC_HD static void turn(const MelTables& tables, Shared& s, int b, int c) {
    I64 re[2] = {0, 0}, im[2] = {0, 0};
    LIPSYNC_UNROLL
    for (int which = 0; which < 2; which++) {
      if (which == 1 && b == 0) continue;  // class 0 is its own counterpart
      const int place = which == 0 ? b : kB - b;
      const std::int32_t r = s.z_re[c * kB + place], i = s.z_im[c * kB + place];
      const std::int32_t w_re = tables.turn_re[place][c], w_im = tables.turn_im[place][c];
      re[which] = product(r, w_re) - product(i, w_im);
      im[which] = product(r, w_im) + product(i, w_re);
    }
    s.sum_re[b * kC + c] = rounded<31>(re[0] + re[1]);
    s.sum_im[b * kC + c] = rounded<31>(im[0] + im[1]);
    s.diff_re[b * kC + c] = rounded<31>(re[0] - re[1]);
    s.diff_im[b * kC + c] = rounded<31>(im[0] - im[1]);
  }

  // Bins c + 32 d and c + 32 (25 - d), which differ in the sign of the sines.
  LIPSYNC_HD static void transform25(Shared& s, int d, int c) {
    I64 re = s.sum_re[c] * I64{1 << 28}, im = s.sum_im[c] * I64{1 << 28};
    I64 sin_re = 0, sin_im = 0;
    for (int b = 1, place = d; b < kHalf; b++) {
      re += product(s.sum_re[b * kC + c], s.cos25[place]);
      im += product(s.sum_im[b * kC + c], s.cos25[place]);
      sin_re += product(s.diff_re[b * kC + c], s.sin25[place]);
      sin_im += product(s.diff_im[b * kC + c], s.sin25[place]);
      place += d;
      if (place >= kB) place -= kB;
    }
    set_magnitude(s, c, d, re + sin_im, im - sin_re);
    if (d > 0) set_magnitude(s, c, kB - d, re - sin_im, im + sin_re);
  }

  LIPSYNC_HD static void set_magnitude(Shared& s, int c, int d, I64 re, I64 im) {
    int bin = c + kA * d;
    if (bin > mel::kFft / 2) {
      if (c == 0 || c == kA / 2) return;  // its mirror image lies in the same column
      bin = mel::kFft - bin;
    }
    const float r = static_cast<float>(re), i = static_cast<float>(im);
    s.magnitude[bin] = sqrtf(r * r + i * i);
  }

  LIPSYNC_HD static void add_up(const MelTables& tables, Shared& s, int band, int part) {
    const int start = tables.start[band], n = tables.start[band + 1] - start;
    const float* magnitude = s.magnitude + tables.first_bin[band];
    const float* weights = tables.weights + start;
    float sum = 0.0f;
    for (int k = n * part / kParts; k < n * (part + 1) / kParts; k++)
      sum += weights[k] * magnitude[k];
    s.part[band * kParts + part] = sum;
  }

  LIPSYNC_HD static void write(const Args& args, const Shared& s, const Thread& who, int band) {
    const float* part = s.part + band * kParts;
    const float peak = peak_of(s);
    const float m = ((part[0] + part[1]) + part[2]) * ldexpf(1.0f, exponent_of(peak) - 54);
    // 8 (20 log10(m) - 20 + 100) / 100 - 4
    const float value = 1.6f * log10f(m > 1e-5f ? m : 1e-5f) + 2.4f;
    const float kept = fminf(fmaxf(value, -4.0f), 4.0f);
    const I64 at = (static_cast<I64>(who.x) * mel::kBands + band) * kRows + who.y;
    store(args.out, args.type, at, kept);
  }
};

}  // namespace lipsync::cuda
