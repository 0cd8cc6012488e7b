// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/images.hpp"
#include "cuda/launch.hpp"

namespace lipsync::cuda {

void region_input(const std::vector<const std::uint8_t*>& crops, const RegionInput::Args& how,
                  Stream stream) {
  RegionInput::Args args = how;
  const std::int64_t bytes = how.type == Real::kFloat32 ? 4 : 2;
  constexpr int pixels = RegionInput::kThreads * RegionInput::kEach;
  const int blocks = (how.region * how.region + pixels - 1) / pixels;
  for (std::size_t first = 0; first < crops.size(); first += RegionInput::kJobs) {
    const std::size_t count = std::min<std::size_t>(RegionInput::kJobs, crops.size() - first);
    std::copy_n(crops.begin() + static_cast<std::ptrdiff_t>(first), count, args.crops);
    args.out = static_cast<char*>(how.out) + bytes * how.picture * static_cast<std::int64_t>(first);
    launch<RegionInput>({blocks, 1, static_cast<int>(count)}, args, stream);
  }
}

void compose(const std::vector<ComposeJob>& jobs, Stream stream) {
  Compose::Args args{};
  for (std::size_t first = 0; first < jobs.size(); first += Compose::kJobs) {
    const std::size_t count = std::min<std::size_t>(Compose::kJobs, jobs.size() - first);
    int across = 0, down = 0;
    for (std::size_t k = 0; k < count; k++) {
      const ComposeJob& job = args.jobs[k] = jobs[first + k];
      across = std::max(across, (job.part_width + Compose::kWide - 1) / Compose::kWide);
      down = std::max(down, (job.part_height + Compose::kHigh - 1) / Compose::kHigh);
    }
    launch<Compose>({across, down, static_cast<int>(count)}, args, stream);
  }
}

}  // namespace lipsync::cuda
