// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the image path, one element at a time: image.hpp uses it on the host and
// cuda/compose_kernel.hpp on a device, so both give the same bits. Not to be compiled with
// contraction to fused multiply-add.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(__CUDACC__)
#define LIPSYNC_BOTH __host__ __device__
#else
#define LIPSYNC_BOTH
#endif

namespace lipsync::detail {

// Taps of one output coordinate: four source indices (clamped to the picture) and their weights
// in 1/2048, pixel centres at half integers. Bilinear ones have two of no weight, so that whoever
// adds up four need not know which they are.
struct Taps {
  int index[4];
  int weight[4];
};

// Source pixels for one of the result, as each way of resizing computes it.
LIPSYNC_BOTH inline double scale_of(int from, int to, bool linear) {
  return linear ? 1.0 / (static_cast<double>(to) / from) : static_cast<double>(from) / to;
}

// Cubic with a = -0.75: taps of output `d` of a side of `from` pixels; `scale` is from / to.
LIPSYNC_BOTH inline Taps cubic_taps_of(int d, int from, double scale) {
  constexpr float a = -0.75f;
  float f = static_cast<float>((d + 0.5) * scale - 0.5);
  const int s = static_cast<int>(floorf(f));
  f -= static_cast<float>(s);
  float c[4];
  c[0] = ((a * (f + 1) - 5 * a) * (f + 1) + 8 * a) * (f + 1) - 4 * a;
  c[1] = ((a + 2) * f - (a + 3)) * f * f + 1;
  c[2] = ((a + 2) * (1 - f) - (a + 3)) * (1 - f) * (1 - f) + 1;
  c[3] = 1.f - c[0] - c[1] - c[2];
  Taps taps;
  for (int k = 0; k < 4; k++) {
    const int at = s - 1 + k;
    taps.index[k] = at < 0 ? 0 : at > from - 1 ? from - 1 : at;
    taps.weight[k] = static_cast<int>(lrintf(c[k] * 2048.f));
  }
  return taps;
}

// Bilinear, as OpenCV has it for bytes; `scale` is 1 / (to / from). Beyond the first and the last
// pixel's middle, columns are weighted as that one alone, but rows keep both weights: what is cut
// off below differs by that.
LIPSYNC_BOTH inline Taps linear_taps_of(int d, int from, double scale, bool rows) {
  float f = static_cast<float>((d + 0.5) * scale - 0.5);
  int s = static_cast<int>(floorf(f));
  f -= static_cast<float>(s);
  if (!rows && (s < 0 || s >= from - 1)) {
    f = 0.f;
    s = s < 0 ? 0 : from - 1;
  }
  Taps taps;
  for (int k = 0; k < 4; k++) {
    const int at = k == 0 ? s : s + 1;
    taps.index[k] = at < 0 ? 0 : at > from - 1 ? from - 1 : at;
    taps.weight[k] = 0;
  }
  taps.weight[0] = static_cast<int>(lrintf((1.f - f) * 2048.f));
  taps.weight[1] = static_cast<int>(lrintf(f * 2048.f));
  return taps;
}

LIPSYNC_BOTH inline std::uint8_t saturate(int v) {
  return static_cast<std::uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

// A value weighted in both directions, to a byte.
LIPSYNC_BOTH inline std::uint8_t rounded(int v) { return saturate((v + (1 << 21)) >> 22); }

// Two rows, weighted across, to a byte: the steps in which OpenCV's bilinear loses its last bits.
LIPSYNC_BOTH inline std::uint8_t blended(int above, int below, int weight, int weight_below) {
  const int v = ((weight * (above >> 4)) >> 16) + ((weight_below * (below >> 4)) >> 16);
  return static_cast<std::uint8_t>((v + 2) >> 2);
}

// Is this pixel of a region of r x r hidden from the network? `half`: its lower half; else the
// mouth and what lies around it.
LIPSYNC_BOTH inline bool hidden(int x, int y, int r, bool half) {
  if (half) return y >= r / 2;
  return x >= 5 && x <= r - 6 && y >= 5 && y <= r - 11;
}

// A value of the network's output to a byte: times 255, truncated.
LIPSYNC_BOTH inline std::uint8_t level(float value) {
  const float v = value * 255.0f;
  return static_cast<std::uint8_t>(!(v > 0.f) ? 0.f : v >= 255.f ? 255.f : v);
}

}  // namespace lipsync::detail
