// SPDX-License-Identifier: Apache-2.0
// The JPEG kernels on the host, with any pixels, sizes and intervals: each segment fits its slot,
// and no byte of it looks like a marker.
#include <memory>

#include "../cuda/jpeg_kernel.hpp"
#include "input.hpp"

using namespace lipsync::cuda;
using lipsync::fuzz::expect;
using lipsync::fuzz::Input;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  std::uint16_t table[2][64];
  jpeg::quant_tables(input.between(1, 100), table);
  jpeg::Picture picture{};
  picture.width = input.between(1, 70), picture.height = input.between(1, 50);
  picture.interval = input.between(1, 20);
  picture.across = (picture.width + 15) / 16;
  picture.units = picture.across * ((picture.height + 15) / 16);
  picture.slot = jpeg::slot_bytes(std::min(picture.interval, picture.units));
  picture.stride = 3 * picture.width + input.between(0, 9);
  auto pixels = input.bytes(static_cast<std::size_t>(picture.stride * (picture.height - 1)) +
                            static_cast<std::size_t>(3 * picture.width));
  const int segments = jpeg::segments_of(picture);
  std::vector<std::uint8_t> out(static_cast<std::size_t>(picture.slot * segments));
  std::vector<std::int32_t> sizes(static_cast<std::size_t>(segments));
  picture.pixels = pixels.data(), picture.out = out.data();
  const auto args = std::make_unique<jpeg::Encode::Args>();
  args->pictures[0] = picture;
  args->tables = &table[0][0], args->sizes = sizes.data();
  emulate<jpeg::Encode>({segments, 1, 1}, *args, Order::kForward, 0xA5);
  for (int s = 0; s < segments; s++) {
    const int length = sizes[static_cast<std::size_t>(s)];
    expect(length > 0 && length <= picture.slot, "a segment fits its slot");
    const std::uint8_t* at = out.data() + s * picture.slot;
    for (int k = 0; k < length; k++)
      expect(at[k] != 0xFF || (k + 1 < length && at[k + 1] == 0), "no byte looks like a marker");
  }
  return 0;
}
