// SPDX-License-Identifier: Apache-2.0
// Baseline JPEG with restart markers: the coded bytes of each restart segment, those that
// libjpeg-turbo writes (4:2:0, its integer transform, standard Huffman tables).
//
// A block codes a segment, four minimum coded units (16 x 16 pixels, six blocks of 8 x 8: four of
// luma, Cb, Cr) a round; the prediction of the mean, the bits of a byte begun and the place in the
// output go from round to round.
//
//   pixels ► samples ► rows, columns of the transform ► quantised, in order ► numbers of bits,
//   and from their sums where each thread's bits come ► bits ► bytes, a 0 behind each 255 ► out
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/grid.hpp"
#include "cuda/jpeg_tables.hpp"

namespace lipsync::cuda::jpeg {

inline constexpr int kUnit = 16;
inline constexpr int kBlocksOfUnit = 6;

// The most bits of a block: a mean's code of 9 and its 11 bits, then 63 codes of 16 with 10 bits.
// (Samples of 8 bits give coefficients below 1024.)
inline constexpr int kMostBits = 20 + 63 * 26;

// Bytes that a segment of so many units never exceeds; a multiple of 16.
inline constexpr std::int64_t slot_bytes(std::int64_t units) {
  const std::int64_t coded = (units * kBlocksOfUnit * kMostBits + 7) / 8;
  return (2 * coded + 15) / 16 * 16;
}

// A picture to code. Pictures are copied to the device with the launch.
struct Picture {
  const std::uint8_t* pixels;  // RGB, rows `stride` bytes apart
  std::int64_t stride;
  int width, height;
  int interval;       // units of a segment
  int table;          // which of the quantisation tables
  int segment;        // number of the first segment in `sizes`
  int across, units;  // units in a row, and in all
  std::int64_t slot;  // bytes between two segments in `out`
  std::uint8_t* out;  // of the first segment
};

LIPSYNC_HD inline int segments_of(const Picture& p) {
  return (p.units + p.interval - 1) / p.interval;
}

struct Sample {
  int y, cb, cr;
};

// In 1/65536, rounded as libjpeg does it (half up for luma, half down for chroma).
LIPSYNC_HD inline Sample converted(const std::uint8_t* rgb) {
  const int r = rgb[0], g = rgb[1], b = rgb[2];
  constexpr int half = 1 << 15, middle = 128 << 16;
  return {(19595 * r + 38470 * g + 7471 * b + half) >> 16,
          (-11059 * r - 21709 * g + 32768 * b + middle + half - 1) >> 16,
          (32768 * r - 27439 * g - 5329 * b + middle + half - 1) >> 16};
}

// One dimension of the transform, 8 x the orthonormal one in all, by Loeffler, Ligtenberg and
// Moschytz with constants of 13 bits. The rows' results carry 2 more bits.
template <bool Columns>
LIPSYNC_HD inline void transform(int d[8]) {
  constexpr int shift = Columns ? 13 + 2 : 13 - 2, half = 1 << (shift - 1);
  const int s07 = d[0] + d[7], s16 = d[1] + d[6], s25 = d[2] + d[5], s34 = d[3] + d[4];
  const int m07 = d[0] - d[7], m16 = d[1] - d[6], m25 = d[2] - d[5], m34 = d[3] - d[4];
  const int outer = s07 + s34, inner = s16 + s25, p = s07 - s34, q = s16 - s25;
  if constexpr (Columns) {
    d[0] = (outer + inner + 2) >> 2;
    d[4] = (outer - inner + 2) >> 2;
  } else {
    d[0] = (outer + inner) * 4;
    d[4] = (outer - inner) * 4;
  }
  const int even = (p + q) * 4433;
  d[2] = (even + p * 6270 + half) >> shift;
  d[6] = (even - q * 15137 + half) >> shift;
  const int z1 = -7373 * (m34 + m07), z2 = -20995 * (m25 + m16);
  const int z5 = 9633 * (m34 + m16 + m25 + m07);
  const int z3 = z5 - 16069 * (m34 + m16), z4 = z5 - 3196 * (m25 + m07);
  d[7] = (m34 * 2446 + z1 + z3 + half) >> shift;
  d[5] = (m25 * 16819 + z2 + z4 + half) >> shift;
  d[3] = (m16 * 25172 + z2 + z3 + half) >> shift;
  d[1] = (m07 * 12299 + z1 + z4 + half) >> shift;
}

// A step of quantisation: 8 times it, and 2^32 over that, rounded up.
struct Step {
  std::uint32_t size, inverse;
};
LIPSYNC_HD inline Step step_of(std::uint32_t step) {
  const std::uint32_t size = step == 0 ? 8 : step * 8;
  return {size, 0xFFFFFFFFu / size + 1};
}
// Rounded, halves away from zero. Exact: the inverse is off by less than size / 2^32 relative to
// 1 / size, the value below 2^15, and size below 2^12.
LIPSYNC_HD inline int quantised(int value, Step step) {
  const auto magnitude = static_cast<std::uint32_t>(value < 0 ? -value : value) + step.size / 2;
  const auto level = static_cast<int>(static_cast<std::uint64_t>(magnitude) * step.inverse >> 32);
  return value < 0 ? -level : level;
}

// Bits that a number (not 0) takes, and zeros above the highest one of a mask (0: 64).
LIPSYNC_HD inline int width_of(std::uint32_t v) {
#if defined(__CUDA_ARCH__)
  return 32 - __clz(static_cast<int>(v));
#else
  return v == 0 ? 0 : 32 - __builtin_clz(v);
#endif
}
LIPSYNC_HD inline int highest(std::uint64_t mask) {
#if defined(__CUDA_ARCH__)
  return 63 - __clzll(static_cast<long long>(mask));
#else
  return 63 - __builtin_clzll(mask);
#endif
}

struct Encode {
  static constexpr int kUnits = 4;  // of a round
  static constexpr int kBlocks = kUnits * kBlocksOfUnit;
  static constexpr int kThreads = kBlocks * 8, kPhases = 10;
  static constexpr int kPictures = 64;
  static constexpr int kWords = (kBlocks * kMostBits + 7) / 32 + 1;

  struct Args {
    Picture pictures[kPictures];
    const std::uint16_t* tables;  // [][2][64]
    std::int32_t* sizes;
  };
  // Eight neighbours, moved as one.
  struct alignas(16) Row {
    std::int16_t v[8];
  };
  struct Shared {
    // A row is 16 bytes; the ninth of a block lets four blocks' columns fall on different banks.
    Row samples[kBlocks][9];                    // then what the transform has made of them
    Row coded[kBlocks][9];                      // quantised, in the order of coding
    alignas(8) std::uint8_t masks[kBlocks][8];  // bit k of byte g: coefficient 8 g + k is not 0
    std::uint16_t bits[kThreads];               // of each thread; later its bytes of 255
    std::uint32_t groups[kBlocks];              // sums of eight of them
    std::uint32_t words[kWords];                // the bits, highest first
    Step steps[2][64];
    std::int32_t mean[3];             // of the round before
    std::uint32_t begun, begun_bits;  // the byte that it left
    std::uint32_t total;              // bits of this round, with those
    std::int64_t at, next_at;         // where its bytes go
  };
  struct Local {};

  // The part of a segment that a round codes.
  struct Part {
    int first, count;  // units
    bool last;
  };
  LIPSYNC_HD static Part part(const Picture& p, const Thread& who) {
    const int begin = who.x * p.interval;
    const int length = p.units - begin < p.interval ? p.units - begin : p.interval;
    const int done = who.round * kUnits, left = length - done;
    return {begin + done, left < kUnits ? left : kUnits, left <= kUnits};
  }
  LIPSYNC_HD static int rounds(const Args& args, const Thread& who) {
    const Picture& p = args.pictures[who.z];
    if (who.x >= segments_of(p)) return 1;
    const int begin = who.x * p.interval;
    const int length = p.units - begin < p.interval ? p.units - begin : p.interval;
    return (length + kUnits - 1) / kUnits;
  }

  template <int Phase>
  LIPSYNC_HD static void phase(const Args& args, Shared& shared, Local&, const Thread& who) {
    const Picture& p = args.pictures[who.z];
    if (who.x >= segments_of(p)) return;
    const Part now = part(p, who);
    if constexpr (Phase == 0) {
      begin(args, p, shared, who);
      sample(p, now, shared, who.number);
    }
    if constexpr (Phase == 1) rows(p, now, shared, who.number);
    if constexpr (Phase == 2) columns(p, now, shared, who.number);
    if constexpr (Phase == 3) mark(now, shared, who.number);
    if constexpr (Phase == 4) count(p, now, shared, who.number);
    if constexpr (Phase == 5 || Phase == 8) sum(shared, who.number);
    if constexpr (Phase == 6) write(p, now, shared, who.number);
    if constexpr (Phase == 7) stuffing(now, shared, who.number);
    if constexpr (Phase == 9) finish(args, p, now, shared, who);
  }

  LIPSYNC_HD static void begin(const Args& args, const Picture& p, Shared& shared,
                               const Thread& who) {
    const bool anew = who.round == 0;
    if (anew && who.number < 128)
      shared.steps[who.number / 64][who.number % 64] =
          step_of(args.tables[p.table * 128 + who.number]);
    for (int k = who.number; k < kWords; k += kThreads)
      shared.words[k] = k == 0 && !anew ? shared.begun << 24 : 0;
    if (who.number > 0) return;
    shared.at = anew ? 0 : shared.next_at;
    if (!anew) return;
    shared.begun_bits = 0;
    for (int c = 0; c < 3; c++) shared.mean[c] = 0;
  }

  // Which block of the picture a luma block is; those beyond its edges are not coded but for a
  // mean that is the one before.
  LIPSYNC_HD static bool beyond(const Picture& p, int unit, int k) {
    if (k >= 4) return false;
    const int x = unit % p.across * kUnit + (k & 1) * 8, y = unit / p.across * kUnit + (k >> 1) * 8;
    return x >= p.width || y >= p.height;
  }

  // Four pixels at a time: 2 x 2 of luma and one of each chroma. Beyond the edges the last column
  // repeats; so do the last row of luma, and the last one of chroma (not the pixels under it).
  LIPSYNC_HD static void sample(const Picture& p, Part now, Shared& shared, int number) {
    for (int k = number; k < now.count * 64; k += kThreads) {
      const int u = k / 64, qy = k / 8 % 8, qx = k % 8, unit = now.first + u;
      const int x = unit % p.across * kUnit + 2 * qx, y = unit / p.across * kUnit + 2 * qy;
      const int x0 = x < p.width ? x : p.width - 1, x1 = x + 1 < p.width ? x + 1 : p.width - 1;
      const int y0 = y < p.height ? y : (p.height - 1) / 2 * 2;
      const int y1 = y0 + 1 < p.height ? y0 + 1 : y0;
      const std::uint8_t *above = p.pixels + y0 * p.stride, *below = p.pixels + y1 * p.stride;
      const Sample a = converted(above + 3 * x0), b = converted(above + 3 * x1);
      const Sample c = converted(below + 3 * x0), d = converted(below + 3 * x1);
      auto* luma = shared.samples[u * kBlocksOfUnit + qy / 4 * 2 + qx / 4];
      const int row = 2 * qy % 8, column = 2 * qx % 8;
      const bool inside = y < p.height;
      put(luma[row].v[column], (inside ? a : c).y);
      put(luma[row].v[column + 1], (inside ? b : d).y);
      put(luma[row + 1].v[column], c.y);
      put(luma[row + 1].v[column + 1], d.y);
      // Their mean, where halves go up and down by turns.
      const int bias = 1 + (qx & 1);
      put(shared.samples[u * kBlocksOfUnit + 4][qy].v[qx], (a.cb + b.cb + c.cb + d.cb + bias) >> 2);
      put(shared.samples[u * kBlocksOfUnit + 5][qy].v[qx], (a.cr + b.cr + c.cr + d.cr + bias) >> 2);
    }
  }
  LIPSYNC_HD static void put(std::int16_t& where, int sample) {
    where = static_cast<std::int16_t>(sample - 128);
  }

  LIPSYNC_HD static bool idle(Part now, int number) {
    return number >= now.count * kBlocksOfUnit * 8;
  }

  LIPSYNC_HD static void rows(const Picture&, Part now, Shared& shared, int number) {
    if (idle(now, number)) return;
    Row row = shared.samples[number / 8][number % 8];
    int d[8];
    for (int k = 0; k < 8; k++) d[k] = row.v[k];
    transform<false>(d);
    for (int k = 0; k < 8; k++) row.v[k] = static_cast<std::int16_t>(d[k]);
    shared.samples[number / 8][number % 8] = row;
  }

  LIPSYNC_HD static void columns(const Picture& p, Part now, Shared& shared, int number) {
    if (idle(now, number)) return;
    const int block = number / 8, column = number % 8, k = block % kBlocksOfUnit;
    int d[8];
    for (int r = 0; r < 8; r++) d[r] = shared.samples[block][r].v[column];
    transform<true>(d);
    const bool empty = beyond(p, now.first + block / kBlocksOfUnit, k);
    for (int r = 0; r < 8; r++) {
      const int place = codes().zigzag[r * 8 + column];
      const int level = empty ? 0 : quantised(d[r], shared.steps[k >= 4][r * 8 + column]);
      shared.coded[block][place / 8].v[place % 8] = static_cast<std::int16_t>(level);
    }
  }

  LIPSYNC_HD static void mark(Part now, Shared& shared, int number) {
    if (idle(now, number)) return;
    const Row row = shared.coded[number / 8][number % 8];
    unsigned mask = 0;
    for (int k = 7; k >= 0; k--) mask = mask * 2 + (row.v[k] != 0);
    if (number % 8 == 0) mask &= ~1u;  // the mean is coded always
    shared.masks[number / 8][number % 8] = static_cast<std::uint8_t>(mask);
  }

  // The mean of a block less that of the one of its colour before it in the segment.
  LIPSYNC_HD static int difference(const Picture& p, Part now, const Shared& shared, int block) {
    const int u = block / kBlocksOfUnit, k = block % kBlocksOfUnit;
    if (beyond(p, now.first + u, k)) return 0;
    const int mean = shared.coded[block][0].v[0];
    if (k >= 4)
      return mean - (u > 0 ? shared.coded[block - kBlocksOfUnit][0].v[0] : shared.mean[k - 3]);
    return mean - luma_before(p, now, shared, 4 * u + k);
  }
  // The mean of the last luma block before the nth that is not beyond the picture.
  LIPSYNC_HD static int luma_before(const Picture& p, Part now, const Shared& shared, int n) {
    for (n--; n >= 0; n--)
      if (!beyond(p, now.first + n / 4, n % 4))
        return shared.coded[n / 4 * kBlocksOfUnit + n % 4][0].v[0];
    return shared.mean[0];
  }

  // The codes of a thread's eight coefficients, each as put(bits, how many).
  template <class Put>
  LIPSYNC_HD static void code(const Picture& p, Part now, const Shared& shared, int number,
                              Put&& put) {
    const int block = number / 8, group = number % 8, chroma = block % kBlocksOfUnit >= 4;
    const Codes& table = codes();
    const Row row = shared.coded[block][group];
    std::uint64_t mask;
    memcpy(&mask, shared.masks[block], sizeof mask);
    if (group == 0) {
      const int d = difference(p, now, shared, block);
      value(table.dc[chroma], 0, d, put);
    }
    for (int k = 0; k < 8; k++) {
      const int place = 8 * group + k;
      if (!(mask >> place & 1)) continue;
      const std::uint64_t before = mask & ((std::uint64_t{1} << place) - 1);
      int run = place - 1 - (before ? highest(before) : 0);
      for (; run > 15; run -= 16)
        put(table.ac[chroma][0xF0] & 0xFFFF, table.ac[chroma][0xF0] >> 16);
      value(table.ac[chroma], 16 * run, row.v[k], put);
    }
    if (group == 7 && !(mask >> 63)) put(table.ac[chroma][0] & 0xFFFF, table.ac[chroma][0] >> 16);
  }
  // The code of a number's size, then the number: a negative one less 1, without its sign.
  template <class Put>
  LIPSYNC_HD static void value(const std::uint32_t* table, int run, int v, Put&& put) {
    const int size = width_of(static_cast<std::uint32_t>(v < 0 ? -v : v));
    const std::uint32_t code = table[run + size];
    const auto low = static_cast<std::uint32_t>(v < 0 ? v - 1 : v) & ((1u << size) - 1);
    put((code & 0xFFFF) << size | low, (code >> 16) + size);
  }

  LIPSYNC_HD static void count(const Picture& p, Part now, Shared& shared, int number) {
    std::uint32_t total = 0;
    if (!idle(now, number))
      code(p, now, shared, number, [&](std::uint32_t, std::uint32_t bits) { total += bits; });
    shared.bits[number] = static_cast<std::uint16_t>(total);
  }

  LIPSYNC_HD static void sum(Shared& shared, int number) {
    if (number >= kBlocks) return;
    std::uint32_t total = 0;
    for (int k = 0; k < 8; k++) total += shared.bits[8 * number + k];
    shared.groups[number] = total;
  }
  // What the threads before this one have; of number kThreads: all.
  LIPSYNC_HD static std::uint32_t before(const Shared& shared, int number) {
    std::uint32_t total = 0;
    for (int k = 0; k < number / 8; k++) total += shared.groups[k];
    for (int k = number / 8 * 8; k < number; k++) total += shared.bits[k];
    return total;
  }

  LIPSYNC_HD static void write(const Picture& p, Part now, Shared& shared, int number) {
    if (number == 0) {
      shared.total = shared.begun_bits + before(shared, kThreads);
      if (now.last && shared.total % 8 != 0)  // a segment's last byte is filled with ones
        set_bits(shared.words[shared.total / 32], (0xFFu >> shared.total % 8)
                                                      << (24 - shared.total / 8 % 4 * 8));
    }
    if (idle(now, number)) return;
    // A register of 64 bits whose highest 32 are the word to come next.
    std::uint32_t at = shared.begun_bits + before(shared, number);
    std::uint32_t word = at / 32, held = at % 32;
    std::uint64_t pending = 0;
    code(p, now, shared, number, [&](std::uint32_t bits, std::uint32_t size) {
      pending |= static_cast<std::uint64_t>(bits) << (64 - held - size);
      held += size;
      if (held < 32) return;
      set_bits(shared.words[word++], static_cast<std::uint32_t>(pending >> 32));
      pending <<= 32;
      held -= 32;
    });
    if (held > 0 && pending)
      set_bits(shared.words[word], static_cast<std::uint32_t>(pending >> 32));
  }

  // Bytes of this round: all that are full, and in the last one the one filled up.
  LIPSYNC_HD static int bytes(Part now, const Shared& shared) {
    return static_cast<int>((shared.total + (now.last ? 7 : 0)) / 8);
  }
  LIPSYNC_HD static std::uint32_t byte(const Shared& shared, int at) {
    return shared.words[at / 4] >> (24 - at % 4 * 8) & 0xFF;
  }

  LIPSYNC_HD static void stuffing(Part now, Shared& shared, int number) {
    const int all = bytes(now, shared), each = (all + kThreads - 1) / kThreads;
    int found = 0;
    for (int k = number * each; k < all && k < (number + 1) * each; k++)
      found += byte(shared, k) == 0xFF;
    shared.bits[number] = static_cast<std::uint16_t>(found);
  }

  LIPSYNC_HD static void finish(const Args& args, const Picture& p, Part now, Shared& shared,
                                const Thread& who) {
    const int all = bytes(now, shared), each = (all + kThreads - 1) / kThreads, number = who.number;
    std::uint8_t* out = p.out + who.x * p.slot;
    std::int64_t at = shared.at + number * each + before(shared, number);
    for (int k = number * each; k < all && k < (number + 1) * each; k++) {
      const std::uint32_t value = byte(shared, k);
      if (at < p.slot) out[at] = static_cast<std::uint8_t>(value);
      at++;
      if (value != 0xFF) continue;
      if (at < p.slot) out[at] = 0;
      at++;
    }
    if (number > 0) return;
    const std::int64_t end = shared.at + all + before(shared, kThreads);
    if (now.last) {
      args.sizes[p.segment + who.x] = static_cast<std::int32_t>(end);
      return;
    }
    shared.next_at = end;
    shared.begun_bits = shared.total % 8;
    shared.begun = shared.begun_bits ? byte(shared, all) : 0;
    const int blocks = now.count * kBlocksOfUnit;
    shared.mean[0] = luma_before(p, now, shared, 4 * now.count);
    shared.mean[1] = shared.coded[blocks - 2][0].v[0];
    shared.mean[2] = shared.coded[blocks - 1][0].v[0];
  }
};

// Segments of several pictures, packed one behind the other: where each begins, and all of them.
struct Segments {
  int first;   // number in `sizes`
  int before;  // segments of the pictures before
  std::int64_t slot;
  const std::uint8_t* coded;  // the first segment's bytes
};
inline constexpr int kGathered = 256;  // pictures at once
struct GatherArgs {
  Segments pictures[kGathered];
  int count, total;  // pictures, segments
  const std::int32_t* sizes;
  std::int32_t* offsets;  // total + 1
  std::uint8_t* packed;   // on a multiple of 16
  std::int64_t capacity;
  int blocks;  // that copy
};

// Which picture a segment (numbered through all) belongs to.
LIPSYNC_HD inline const Segments& picture_of(const GatherArgs& args, int segment) {
  int low = 0, high = args.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (args.pictures[middle].before <= segment ? low : high) = middle;
  }
  return args.pictures[low];
}
LIPSYNC_HD inline std::int32_t size_of(const GatherArgs& args, int segment) {
  const Segments& p = picture_of(args, segment);
  return args.sizes[p.first + segment - p.before];
}

// One block: the sum of the sizes before each segment.
struct Offsets {
  static constexpr int kThreads = 256, kPhases = 3;
  using Args = GatherArgs;
  struct Shared {
    std::int32_t sums[kThreads], groups[kThreads / 16];
  };
  struct Local {};

  template <int Phase>
  LIPSYNC_HD static void phase(const Args& args, Shared& shared, Local&, const Thread& who) {
    const int each = (args.total + kThreads - 1) / kThreads, number = who.number;
    const int first = number * each < args.total ? number * each : args.total;
    const int end = first + each < args.total ? first + each : args.total;
    if constexpr (Phase == 0) {
      std::int32_t sum = 0;
      for (int k = first; k < end; k++) sum += size_of(args, k);
      shared.sums[number] = sum;
    }
    if constexpr (Phase == 1) {
      if (number >= kThreads / 16) return;
      std::int32_t sum = 0;
      for (int k = 0; k < 16; k++) sum += shared.sums[16 * number + k];
      shared.groups[number] = sum;
    }
    if constexpr (Phase == 2) {
      std::int32_t at = 0;
      for (int k = 0; k < number / 16; k++) at += shared.groups[k];
      for (int k = number / 16 * 16; k < number; k++) at += shared.sums[k];
      for (int k = first; k < end; k++) {
        args.offsets[k] = at;
        at += size_of(args, k);
      }
      if (number == kThreads - 1) args.offsets[args.total] = at;
    }
  }
};

// Sixteen bytes of the result at a time and thread, whatever segments they come from: the result
// may lie in the host's memory, which takes wide, ordered writes best.
struct Gather {
  static constexpr int kThreads = 128, kPhases = 1, kEach = 16;
  static constexpr int kBlocks = 256;  // at most
  using Args = GatherArgs;
  struct Shared {};
  struct Local {};
  struct alignas(16) Piece {
    std::uint64_t low, high;  // the first byte lowest, as it lies in memory
  };

  template <int Phase>
  LIPSYNC_HD static void phase(const Args& args, Shared&, Local&, const Thread& who) {
    const std::int64_t all = args.offsets[args.total];
    const std::int64_t end = all < args.capacity ? all : args.capacity;
    const std::int64_t stride = static_cast<std::int64_t>(args.blocks) * kThreads * kEach;
    std::int64_t at = (static_cast<std::int64_t>(who.x) * kThreads + who.number) * kEach;
    for (; at < end; at += stride)
      copy(args, at, end - at < kEach ? static_cast<int>(end - at) : kEach);
  }

  LIPSYNC_HD static void copy(const Args& args, std::int64_t at, int count) {
    int low = 0, high = args.total;  // the segment that holds `at`
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (args.offsets[middle] <= at ? low : high) = middle;
    }
    Piece piece{0, 0};
    const std::uint8_t* from = nullptr;
    for (int k = 0; k < count; k++) {
      while (at + k >= args.offsets[low + 1]) low++, from = nullptr;
      if (!from) {
        const Segments& p = picture_of(args, low);
        from = p.coded + (low - p.before) * p.slot + (at + k - args.offsets[low]);
      }
      const std::uint64_t byte = *from++;
      (k < 8 ? piece.low : piece.high) |= byte << k % 8 * 8;
    }
    if (count == kEach) {
      *reinterpret_cast<Piece*>(args.packed + at) = piece;
      return;
    }
    for (int k = 0; k < count; k++)
      args.packed[at + k] =
          static_cast<std::uint8_t>((k < 8 ? piece.low : piece.high) >> k % 8 * 8);
  }
};

}  // namespace lipsync::cuda::jpeg
