// SPDX-License-Identifier: Apache-2.0
// What the kernels of an upsampling stage are given (see up_stage.hpp). Plain data: this header is
// part of translation units for instruction sets that the processor may not have, so nothing in it
// may leave code that others could be linked to.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lipsync::up {

// Weights are packed for the kernel: outputs in blocks of its `block`, then of 4 (padded with
// zeros to a multiple of 4), in each block one group of outputs for each input.
struct Plan {
  int low, skip;            // channels from below, and of the skip connection
  int hidden, middle;       // of the first block: expanded, and its result
  int hidden2;              // of the second block: expanded; its result is `middle` channels
  int outputs;              // the stage's: `middle`, or 3 pictures' planes when `picture`
  bool picture;             // after the second block: 1x1 to three planes and the sigmoid
  int height, width;        // of the whole map, twice that of the one below
  int x, y, columns, rows;  // of it, the part to make
  int skip_x, skip_y, skip_columns, skip_rows;  // and the part that the skip tensor holds
  const float *expand_low, *expand_high, *expand_bias;
  const float *depthwise, *depthwise_bias;  // [channel][9]
  const float *project, *project_bias;
  const float *expand2, *expand2_bias;
  const float *depthwise2, *depthwise2_bias;
  const float* project2;                // from the second block's hidden channels
  const float *direct, *project2_bias;  // and from `middle`, when `picture`
};

// Floats of scratch memory for one call, and the call: channels-first tensors, `low` whole,
// `skip` the part that the plan says. The result goes to `planes` (float32, channels first) or,
// of a picture, to `pixels` (RGB from planes that are BGR, times 255, truncated); the other is
// null. `scratch` is aligned to 64 bytes.
struct Kernel {
  const char* name;
  int block;
  std::size_t (*scratch)(const Plan& plan);
  void (*run)(const Plan& plan, const float* low, const float* skip, float* planes,
              std::uint8_t* pixels, float* scratch);
};

extern const Kernel portable;
#if defined(__x86_64__)
extern const Kernel avx2;    // AVX2 and FMA
extern const Kernel avx512;  // AVX-512 F
#endif

}  // namespace lipsync::up
