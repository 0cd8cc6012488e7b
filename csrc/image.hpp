// SPDX-License-Identifier: Apache-2.0
// The image path: resizing as OpenCV does it for 8 bits (INTER_CUBIC, INTER_LINEAR), the networks'
// input and output layouts, and pasting a region back into its frame. All pictures are 8-bit RGB,
// interleaved; the networks speak BGR planes in 0..1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "image_math.hpp"

namespace lipsync {

// A picture of height x width x 3 bytes, rows `stride` bytes apart; it owns nothing.
struct View {
  const std::uint8_t* data;
  int height, width;
  std::ptrdiff_t stride;
  const std::uint8_t* row(int y) const { return data + y * stride; }
};
struct MutableView {
  std::uint8_t* data;
  int height, width;
  std::ptrdiff_t stride;
  std::uint8_t* row(int y) const { return data + y * stride; }
};

namespace detail {

// Taps of each output coordinate of a side.
inline std::vector<Taps> taps_of(int from, int to, bool linear, bool rows) {
  std::vector<Taps> taps(static_cast<std::size_t>(to));
  const double scale = scale_of(from, to, linear);
  for (int d = 0; d < to; d++)
    taps[static_cast<std::size_t>(d)] =
        linear ? linear_taps_of(d, from, scale, rows) : cubic_taps_of(d, from, scale);
  return taps;
}

}  // namespace detail

// Resize `src` into all of `dst`; a copy where the sizes agree. Bicubic within one grey level of
// OpenCV, bilinear (`linear`) its very bytes.
inline void resize(const View& src, const MutableView& dst, bool linear) {
  if (src.height == dst.height && src.width == dst.width) {
    for (int y = 0; y < src.height; y++)
      std::memcpy(dst.row(y), src.row(y), static_cast<std::size_t>(src.width) * 3);
    return;
  }
  const auto across = detail::taps_of(src.width, dst.width, linear, false);
  const auto down = detail::taps_of(src.height, dst.height, linear, true);
  const std::size_t n = static_cast<std::size_t>(dst.width) * 3;
  std::vector<std::int32_t> lines(4 * n);
  int held[4] = {-1, -1, -1, -1};  // which source row each slot of `lines` holds
  auto line = [&](int y) {
    const std::size_t slot = static_cast<std::size_t>(y & 3);
    std::int32_t* out = lines.data() + slot * n;
    if (held[slot] != y) {
      const std::uint8_t* in = src.row(y);
      for (const auto& t : across) {
        const std::uint8_t *p0 = in + 3 * t.index[0], *p1 = in + 3 * t.index[1],
                           *p2 = in + 3 * t.index[2], *p3 = in + 3 * t.index[3];
        for (int c = 0; c < 3; c++)
          *out++ =
              p0[c] * t.weight[0] + p1[c] * t.weight[1] + p2[c] * t.weight[2] + p3[c] * t.weight[3];
      }
      held[slot] = y;
    }
    return static_cast<const std::int32_t*>(lines.data() + slot * n);
  };
  for (int y = 0; y < dst.height; y++) {
    const auto& t = down[static_cast<std::size_t>(y)];
    // The four rows are consecutive or clamped repeats, so they occupy distinct slots.
    const std::int32_t *l0 = line(t.index[0]), *l1 = line(t.index[1]), *l2 = line(t.index[2]),
                       *l3 = line(t.index[3]);
    std::uint8_t* out = dst.row(y);
    if (linear) {
      for (std::size_t i = 0; i < n; i++)
        out[i] = detail::blended(l0[i], l1[i], t.weight[0], t.weight[1]);
      continue;
    }
    for (std::size_t i = 0; i < n; i++) {
      const int v =
          l0[i] * t.weight[0] + l1[i] * t.weight[1] + l2[i] * t.weight[2] + l3[i] * t.weight[3];
      out[i] = detail::rounded(v);
    }
  }
}

// The network's image input, 6 x R x R float32: the region as BGR / 255, then the same with its
// mouth area (columns 5 .. R-6, rows 5 .. R-11) black. With `half`, first the region with its lower
// half (rows R/2 .. R-1) black, then all of it. `crop` is (R + 2 border) square.
inline void region_input(const View& crop, int border, bool half, float* out) {
  const int r = crop.width - 2 * border;
  const std::size_t plane = static_cast<std::size_t>(r) * static_cast<std::size_t>(r);
  for (int y = 0; y < r; y++) {
    const std::uint8_t* in = crop.row(y + border) + 3 * border;
    for (int x = 0; x < r; x++) {
      const bool hidden = detail::hidden(x, y, r, half);
      for (int c = 0; c < 3; c++) {
        const float v = static_cast<float>(in[3 * x + 2 - c]) / 255.0f;
        float* o = out + static_cast<std::size_t>(c) * plane + static_cast<std::size_t>(y) * r + x;
        o[half ? 3 * plane : 0] = v;
        o[half ? 0 : 3 * plane] = hidden ? 0.0f : v;
      }
    }
  }
}

// The network's output, three planes of float32 BGR in 0..1, to packed RGB: times 255, truncated.
inline void region_output(const float* in, std::size_t plane, std::uint8_t* out) {
  for (std::size_t i = 0; i < plane; i++)
    for (std::size_t c = 0; c < 3; c++) out[3 * i + c] = detail::level(in[(2 - c) * plane + i]);
}

// Put `region` at (left, top) into a copy of `crop`, resize that to the rectangle at (x, y) of
// `frame` and paste it; pixels whose `keep` byte (rectangle sized, may be null) is set stay.
// Region and rectangle must lie within crop and frame; the caller checks.
inline void compose(const View& crop, const View& region, int left, int top,
                    const MutableView& frame, int x, int y, int width, int height,
                    const std::uint8_t* keep, bool linear) {
  const int side = crop.width;
  std::vector<std::uint8_t> patch(static_cast<std::size_t>(side) * side * 3);
  const MutableView full{patch.data(), side, side, static_cast<std::ptrdiff_t>(side) * 3};
  for (int i = 0; i < side; i++)
    std::memcpy(full.row(i), crop.row(i), static_cast<std::size_t>(side) * 3);
  for (int i = 0; i < region.height; i++)
    std::memcpy(full.row(i + top) + 3 * left, region.row(i),
                static_cast<std::size_t>(region.width) * 3);
  const View source{patch.data(), side, side, full.stride};
  const MutableView target{frame.row(y) + 3 * x, height, width, frame.stride};
  if (!keep) {
    resize(source, target, linear);
    return;
  }
  std::vector<std::uint8_t> resized(static_cast<std::size_t>(width) * height * 3);
  const std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(width) * 3;
  resize(source, {resized.data(), height, width, stride}, linear);
  for (int i = 0; i < height; i++)
    for (int j = 0; j < width; j++)
      if (!keep[static_cast<std::size_t>(i) * width + j])
        std::memcpy(target.row(i) + 3 * j, resized.data() + i * stride + 3 * j, 3);
}

}  // namespace lipsync
