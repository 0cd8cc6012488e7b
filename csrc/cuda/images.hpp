// SPDX-License-Identifier: Apache-2.0
// What compose.cu and jpeg.cu offer to the bindings; see kernels.hpp.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/compose_kernel.hpp"
#include "cuda/jpeg_kernel.hpp"

namespace lipsync::cuda {

// compose.cu. All `crops` of (region + 2 border)^2 x 3; see RegionInput::Args for the strides.
void region_input(const std::vector<const std::uint8_t*>& crops, const RegionInput::Args& how,
                  Stream stream);
void compose(const std::vector<ComposeJob>& jobs, Stream stream);

// jpeg.cu
void encode(const std::vector<jpeg::Picture>& pictures, const std::uint16_t* tables,
            std::int32_t* sizes, Stream stream);
// `how` without its pictures.
void gather(const std::vector<jpeg::Segments>& pictures, jpeg::GatherArgs how, Stream stream);

}  // namespace lipsync::cuda
