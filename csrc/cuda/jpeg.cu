// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/images.hpp"
#include "cuda/launch.hpp"

namespace lipsync::cuda {

void encode(const std::vector<jpeg::Picture>& pictures, const std::uint16_t* tables,
            std::int32_t* sizes, Stream stream) {
  jpeg::Encode::Args args{};
  args.tables = tables;
  args.sizes = sizes;
  for (std::size_t first = 0; first < pictures.size(); first += jpeg::Encode::kPictures) {
    const std::size_t count =
        std::min<std::size_t>(jpeg::Encode::kPictures, pictures.size() - first);
    int most = 0;
    for (std::size_t k = 0; k < count; k++) {
      args.pictures[k] = pictures[first + k];
      most = std::max(most, jpeg::segments_of(args.pictures[k]));
    }
    launch<jpeg::Encode>({most, 1, static_cast<int>(count)}, args, stream);
  }
}

void gather(const std::vector<jpeg::Segments>& pictures, jpeg::GatherArgs how, Stream stream) {
  std::copy(pictures.begin(), pictures.end(), how.pictures);
  how.count = static_cast<int>(pictures.size());
  constexpr std::int64_t each = jpeg::Gather::kThreads * jpeg::Gather::kEach;
  how.blocks = static_cast<int>(
      std::clamp<std::int64_t>((how.capacity + each - 1) / each, 1, jpeg::Gather::kBlocks));
  launch<jpeg::Offsets>({}, how, stream);
  launch<jpeg::Gather>({how.blocks, 1, 1}, how, stream);
}

}  // namespace lipsync::cuda
