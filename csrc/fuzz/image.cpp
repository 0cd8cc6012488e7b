// SPDX-License-Identifier: Apache-2.0
// The image path with any sizes and places that the bindings let through; every picture is exactly
// as long as it must be.
#include "../image.hpp"
#include "input.hpp"

using namespace lipsync;
using fuzz::expect;
using fuzz::Input;

namespace {

std::size_t bytes_of(int height, int width) {
  return static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const bool linear = input.between(0, 1) == 1, half = input.between(0, 1) == 1;
  {
    const int h = input.between(1, 40), w = input.between(1, 40);
    const int to_h = input.between(1, 60), to_w = input.between(1, 60);
    const auto from = input.bytes(bytes_of(h, w));
    std::vector<std::uint8_t> to(bytes_of(to_h, to_w));
    resize({from.data(), h, w, 3 * w}, {to.data(), to_h, to_w, 3 * to_w}, linear);
    if (std::all_of(from.begin(), from.end(), [&](auto v) { return v == from[0]; }))
      expect(std::all_of(to.begin(), to.end(), [&](auto v) { return v == from[0]; }),
             "one colour stays that colour");
  }
  const int border = input.between(0, 4), r = input.between(16, 40), side = r + 2 * border;
  const auto crop = input.bytes(bytes_of(side, side));
  const View view{crop.data(), side, side, 3 * side};
  std::vector<float> planes(6 * static_cast<std::size_t>(r * r));
  region_input(view, border, half, planes.data());
  for (const float v : planes) expect(v >= 0.0f && v <= 1.0f, "inputs lie in 0..1");

  std::vector<float> made(3 * static_cast<std::size_t>(r * r));
  input.read(made.data(), made.size() * sizeof(float));
  std::vector<std::uint8_t> region(bytes_of(r, r));
  region_output(made.data(), static_cast<std::size_t>(r * r), region.data());

  const int h = input.between(1, 48), w = input.between(1, 48);
  const int x = input.between(0, w - 1), y = input.between(0, h - 1);
  const int width = input.between(1, w - x), height = input.between(1, h - y);
  auto frame = input.bytes(bytes_of(h, w));
  const auto before = frame;
  std::vector<std::uint8_t> keep(static_cast<std::size_t>(width * height));
  input.read(keep.data(), keep.size());
  const bool masked = input.between(0, 1) == 1;
  compose(view, {region.data(), r, r, 3 * r}, border, border, {frame.data(), h, w, 3 * w}, x, y,
          width, height, masked ? keep.data() : nullptr, linear);
  for (int i = 0; i < h; i++)
    for (int j = 0; j < w; j++) {
      const bool within = i >= y && i < y + height && j >= x && j < x + width;
      const bool stays = !within || (masked && keep[static_cast<std::size_t>((i - y) * width + j - x)]);
      const std::size_t at = 3 * static_cast<std::size_t>(i * w + j);
      if (stays) expect(std::memcmp(&frame[at], &before[at], 3) == 0, "what is outside stays");
    }
  return 0;
}
