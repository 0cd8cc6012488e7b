// SPDX-License-Identifier: Apache-2.0
// Per-element arithmetic of the mel front end, shared by the CPU code and a CUDA kernel.
//
//   y[n] = x[n] - 0.97 x[n-1];  STFT 800 / hop 200, periodic Hann, centred;  80 Slaney mel bands
//   level = 20 log10(max(1e-5, m)) - 20;  out = clip(8 (level + 100) / 100 - 4, -4, 4)
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define LIPSYNC_HD __host__ __device__
#else
#define LIPSYNC_HD
#endif

namespace lipsync::mel {

inline constexpr int kSampleRate = 16000;
inline constexpr int kFft = 800;            // window and transform length, samples (50 ms)
inline constexpr int kHop = 200;            // samples between rows (12.5 ms)
inline constexpr int kBins = kFft / 2 + 1;  // 401
inline constexpr int kBands = 80;
inline constexpr double kMinHz = 55.0, kMaxHz = 7600.0;
inline constexpr double kPreemphasis = 0.97;

LIPSYNC_HD inline double preemphasis(double x, double previous) {
  return x - kPreemphasis * previous;
}

// Periodic Hann window, n in [0, 800).
LIPSYNC_HD inline double hann(int n) {
  return 0.5 - 0.5 * cos(6.283185307179586476925286766559 * n / kFft);
}

// Slaney's mel scale: linear up to 1 kHz, logarithmic above.
LIPSYNC_HD inline double hz_to_mel(double hz) {
  return hz < 1000.0 ? hz * 3.0 / 200.0 : 15.0 + log(hz / 1000.0) * 27.0 / log(6.4);
}
LIPSYNC_HD inline double mel_to_hz(double mel) {
  return mel < 15.0 ? mel * 200.0 / 3.0 : 1000.0 * exp(log(6.4) * (mel - 15.0) / 27.0);
}

// Frequency of edge i in [0, 82) of the bank; band b rises from edge b over b + 1 to b + 2.
LIPSYNC_HD inline double band_edge(int i) {
  const double lo = hz_to_mel(kMinHz), hi = hz_to_mel(kMaxHz);
  return mel_to_hz(lo + (hi - lo) * i / (kBands + 1));
}

// Weight of a bin in a triangle with the edges e0 < e1 < e2, of unit area (Slaney).
LIPSYNC_HD inline float band_weight(int bin, double e0, double e1, double e2) {
  const double hz = static_cast<double>(bin) * kSampleRate / kFft;
  const double rise = (hz - e0) / (e1 - e0), fall = (e2 - hz) / (e2 - e1);
  const double w = rise < fall ? rise : fall;
  return w > 0.0 ? static_cast<float>(w * 2.0 / (e2 - e0)) : 0.0f;
}

// Mel magnitude to the network's scale, in [-4, 4].
LIPSYNC_HD inline float normalise(double m) {
  const double level = 20.0 * log10(m > 1e-5 ? m : 1e-5) - 20.0;
  const double v = 8.0 * (level + 100.0) / 100.0 - 4.0;
  return static_cast<float>(v < -4.0 ? -4.0 : v > 4.0 ? 4.0 : v);
}

}  // namespace lipsync::mel
