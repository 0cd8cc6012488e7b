// SPDX-License-Identifier: Apache-2.0
// The image path's kernels: a crop to the network's input, and the network's output to pixels of
// the avatar's frame. Bytes are those of csrc/image.hpp, whose arithmetic they use.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/grid.hpp"
#include "cuda/half.hpp"
#include "image_math.hpp"

namespace lipsync::cuda {

// A picture to make of a network's output. Jobs are copied to the device with the launch.
struct ComposeJob {
  const void* planes;  // BGR in 0..1; element (c, y, x) at c * channel + y * row + x * column
  Real type;
  std::int32_t channel, row, column;
  int height, width;         // of the region
  int left, top;             // its place in the crop
  const std::uint8_t* crop;  // side x side x 3
  int side;
  float share;                 // of the region; the rest is the crop's
  const std::uint8_t* pixels;  // what stays outside of the rectangle, part_height x part_width x 3
  const std::uint8_t* keep;    // rectangle sized, or null: 1 where a pixel stays
  std::uint8_t* out;           // part_height x part_width x 3
  int part_width, part_height;
  bool linear;          // resized bilinear, not bicubic
  bool resize;          // false: out is the crop with the region in it, from (x, y) on, as it is
  int x, y;             // of the rectangle in the part; see `resize`
  int wide, high;       // of the rectangle
  double across, down;  // `scale_of` side and wide, side and high
};

// A byte of the crop with the region in it.
LIPSYNC_HD inline int source_byte(const ComposeJob& job, int y, int x, int c) {
  const int ry = y - job.top, rx = x - job.left;
  const bool made = ry >= 0 && ry < job.height && rx >= 0 && rx < job.width;
  const std::size_t place = (static_cast<std::size_t>(y) * job.side + x) * 3 + c;
  if (!made) return job.crop[place];
  const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(2 - c) * job.channel +
                            static_cast<std::ptrdiff_t>(ry) * job.row +
                            static_cast<std::ptrdiff_t>(rx) * job.column;
  float value;
  if (job.type == Real::kFloat32)
    value = static_cast<const float*>(job.planes)[at];
  else if (job.type == Real::kFloat16)
    value = from_float16(static_cast<const std::uint16_t*>(job.planes)[at]);
  else
    value = from_bfloat16(static_cast<const std::uint16_t*>(job.planes)[at]);
  const std::uint8_t level = lipsync::detail::level(value);
  if (job.share == 1.0f) return level;
  const float own = job.crop[place];
  return static_cast<int>(rintf(own + job.share * (static_cast<float>(level) - own)));
}

// A tile of a job's output. The horizontal pass of the resize goes to shared memory, a line for
// each source row that the tile sees; where it is shrunk so much that rows between are not seen, a
// line for each of the four taps of each output row.
struct Compose {
  static constexpr int kWide = 32, kHigh = 16;
  static constexpr int kThreads = 256, kPhases = 3;
  static constexpr int kLines = 4 * kHigh, kJobs = 64;

  struct Args {
    ComposeJob jobs[kJobs];
  };
  struct Shared {
    lipsync::detail::Taps across[kWide], down[kHigh];
    std::int32_t lines[kLines][3 * kWide];
  };
  struct Local {};

  // What a block makes: columns first_x .. end_x - 1 of the part, those of them in the rectangle
  // left .. right - 1; likewise down. The rectangle's are empty where there is nothing to resize.
  struct Tile {
    int first_x, end_x, first_y, end_y;
    int left, right, top, bottom;
    LIPSYNC_HD bool resized() const { return left < right && top < bottom; }
  };
  LIPSYNC_HD static Tile tile(const ComposeJob& job, const Thread& who) {
    Tile t;
    t.first_x = who.x * kWide, t.first_y = who.y * kHigh;
    t.end_x = t.first_x + kWide < job.part_width ? t.first_x + kWide : job.part_width;
    t.end_y = t.first_y + kHigh < job.part_height ? t.first_y + kHigh : job.part_height;
    t.left = t.first_x > job.x ? t.first_x : job.x;
    t.right = t.end_x < job.x + job.wide ? t.end_x : job.x + job.wide;
    t.top = t.first_y > job.y ? t.first_y : job.y;
    t.bottom = t.end_y < job.y + job.high ? t.end_y : job.y + job.high;
    if (!job.resize) t.right = t.left;
    return t;
  }

  template <int Phase>
  LIPSYNC_HD static void phase(const Args& args, Shared& shared, Local&, const Thread& who) {
    const ComposeJob& job = args.jobs[who.z];
    const Tile t = tile(job, who);
    if constexpr (Phase == 0) taps(job, t, shared, who.number);
    if constexpr (Phase == 1) horizontal(job, t, shared, who.number);
    if constexpr (Phase == 2) vertical(job, t, shared, who.number);
  }

  LIPSYNC_HD static void taps(const ComposeJob& job, const Tile& t, Shared& shared, int number) {
    if (!t.resized()) return;
    const int x = t.first_x + number, y = t.first_y + number - kWide;
    if (number < kWide) {
      if (x >= t.left && x < t.right)
        shared.across[number] =
            job.linear ? lipsync::detail::linear_taps_of(x - job.x, job.side, job.across, false)
                       : lipsync::detail::cubic_taps_of(x - job.x, job.side, job.across);
    } else if (number < kWide + kHigh) {
      if (y >= t.top && y < t.bottom)
        shared.down[number - kWide] =
            job.linear ? lipsync::detail::linear_taps_of(y - job.y, job.side, job.down, true)
                       : lipsync::detail::cubic_taps_of(y - job.y, job.side, job.down);
    }
  }

  // Source rows from the first that the tile sees to the last; and whether each has a line.
  LIPSYNC_HD static int first_row(const Tile& t, const Shared& shared) {
    return shared.down[t.top - t.first_y].index[0];
  }
  LIPSYNC_HD static int rows(const Tile& t, const Shared& shared) {
    return shared.down[t.bottom - 1 - t.first_y].index[3] - first_row(t, shared) + 1;
  }

  LIPSYNC_HD static void horizontal(const ComposeJob& job, const Tile& t, Shared& shared,
                                    int number) {
    if (!t.resized()) return;
    const int first = first_row(t, shared), seen = rows(t, shared);
    const bool each = seen <= kLines;
    for (int line = number / kWide; line < (each ? seen : kLines); line += kThreads / kWide) {
      const int x = t.first_x + number % kWide, y = t.first_y + line / 4;
      if (x < t.left || x >= t.right || (!each && (y < t.top || y >= t.bottom))) continue;
      const int row = each ? first + line : shared.down[line / 4].index[line % 4];
      const lipsync::detail::Taps taps = shared.across[number % kWide];
      std::int32_t sum[3] = {0, 0, 0};
      for (int k = 0; k < 4; k++)
        for (int c = 0; c < 3; c++)
          sum[c] += source_byte(job, row, taps.index[k], c) * taps.weight[k];
      for (int c = 0; c < 3; c++) shared.lines[line][3 * (number % kWide) + c] = sum[c];
    }
  }

  // A byte a thread, so that a warp writes bytes that lie together.
  LIPSYNC_HD static void vertical(const ComposeJob& job, const Tile& t, const Shared& shared,
                                  int number) {
    const bool each = t.resized() && rows(t, shared) <= kLines;
    for (int at = number; at < kHigh * 3 * kWide; at += kThreads) {
      const int i = at % (3 * kWide), line = at / (3 * kWide);
      const int x = t.first_x + i / 3, y = t.first_y + line;
      if (x >= t.end_x || y >= t.end_y) continue;
      const std::size_t place = (static_cast<std::size_t>(y) * job.part_width + x) * 3 + i % 3;
      if (!job.resize) {
        job.out[place] = static_cast<std::uint8_t>(source_byte(job, y + job.y, x + job.x, i % 3));
        continue;
      }
      const bool inside = x >= t.left && x < t.right && y >= t.top && y < t.bottom;
      if (!inside ||
          (job.keep && job.keep[static_cast<std::size_t>(y - job.y) * job.wide + (x - job.x)])) {
        job.out[place] = job.pixels[place];
        continue;
      }
      const lipsync::detail::Taps& taps = shared.down[line];
      const auto held = [&](int k) {
        return shared.lines[each ? taps.index[k] - first_row(t, shared) : 4 * line + k][i];
      };
      if (job.linear) {
        job.out[place] = lipsync::detail::blended(held(0), held(1), taps.weight[0], taps.weight[1]);
        continue;
      }
      std::int32_t sum = 0;
      for (int k = 0; k < 4; k++) sum += held(k) * taps.weight[k];
      job.out[place] = lipsync::detail::rounded(sum);
    }
  }
};

// Crops to the network's input: N x 6 x R x R in any strides.
struct RegionInput {
  static constexpr int kThreads = 256, kPhases = 2;
  static constexpr int kJobs = 256, kEach = 4;  // crops of a launch, pixels of a thread

  struct Args {
    const std::uint8_t* crops[kJobs];
    int region, border;
    bool half;  // the lower half is hidden and comes first; see region_input of image.hpp
    Real type;
    void* out;                                   // of the first crop
    std::int64_t picture, channel, row, column;  // strides in elements
  };
  struct Shared {
    std::uint32_t value[256];  // of each level, as `type` stores it
  };
  struct Local {};

  template <int Phase>
  LIPSYNC_HD static void phase(const Args& args, Shared& shared, Local&, const Thread& who) {
    if constexpr (Phase == 0) {
      for (int v = who.number; v < 256; v += kThreads) {
        const float value = static_cast<float>(v) / 255.0f;
        shared.value[v] = args.type == Real::kFloat32   ? float_bits(value)
                          : args.type == Real::kFloat16 ? to_float16(value)
                                                        : to_bfloat16(value);
      }
    }
    if constexpr (Phase == 1) {
      const int r = args.region, side = r + 2 * args.border;
      for (int k = 0; k < kEach; k++) {
        const int pixel = (who.x * kEach + k) * kThreads + who.number;
        if (pixel >= r * r) return;
        const int y = pixel / r, x = pixel % r;
        const std::uint8_t* in =
            args.crops[who.z] +
            (static_cast<std::size_t>(y + args.border) * side + (x + args.border)) * 3;
        const bool hidden = lipsync::detail::hidden(x, y, r, args.half);
        const std::int64_t at = who.z * args.picture + y * args.row + x * args.column;
        for (int c = 0; c < 3; c++) {
          const std::uint32_t value = shared.value[in[2 - c]];
          put(args, at + (args.half ? c + 3 : c) * args.channel, value);
          put(args, at + (args.half ? c : c + 3) * args.channel, hidden ? 0u : value);
        }
      }
    }
  }

  LIPSYNC_HD static void put(const Args& args, std::int64_t at, std::uint32_t bits) {
    if (args.type == Real::kFloat32)
      static_cast<float*>(args.out)[at] = bits_float(bits);
    else
      static_cast<std::uint16_t*>(args.out)[at] = static_cast<std::uint16_t>(bits);
  }
};

}  // namespace lipsync::cuda
