// SPDX-License-Identifier: Apache-2.0
// What the mel kernel looks up, worked out once on the host in double precision. Whole numbers
// stand for fractions: a factor named Q29 is its value times 2^29.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "mel_math.hpp"

namespace lipsync::cuda {

struct MelTables {
  // The transform's 800 = 32 x 25: sample n = 25 a + b, bin k = c + 32 d (or 800 - k).
  static constexpr int kA = 32, kB = 25;
  static constexpr int kC = kA / 2 + 1;  // c = 17 … 31 are mirror images, the samples being real
  static constexpr int kWeights = 2 * mel::kBins;

  std::int32_t window[mel::kFft];       // Hann, Q30
  std::int32_t cos32[kA];               // cos(2 pi i / 32), Q29; the sine is 8 places back
  std::int32_t cos25[kB], sin25[kB];    // of 2 pi i / 25, Q28
  std::int32_t turn_re[kB][kC];         // exp(-2 pi i b c / 800), Q30
  std::int32_t turn_im[kB][kC];         //
  std::int32_t first_bin[mel::kBands];  // of a band
  std::int32_t start[mel::kBands + 1];  // of a band's weights
  float weights[kWeights];              // of the bank's bins, band by band

  static MelTables make() {
    MelTables t{};
    for (int n = 0; n < mel::kFft; n++) t.window[n] = fixed(mel::hann(n), 30);
    for (int i = 0; i < kA; i++) t.cos32[i] = fixed(std::cos(angle(i, kA)), 29);
    for (int i = 0; i < kB; i++) {
      t.cos25[i] = fixed(std::cos(angle(i, kB)), 28);
      t.sin25[i] = fixed(std::sin(angle(i, kB)), 28);
    }
    for (int b = 0; b < kB; b++)
      for (int c = 0; c < kC; c++) {
        t.turn_re[b][c] = fixed(std::cos(angle(b * c, mel::kFft)), 30);
        t.turn_im[b][c] = fixed(-std::sin(angle(b * c, mel::kFft)), 30);
      }
    int used = 0;
    for (int band = 0; band < mel::kBands; band++) {
      const double e0 = mel::band_edge(band), e1 = mel::band_edge(band + 1),
                   e2 = mel::band_edge(band + 2);
      t.start[band] = used;
      for (int k = 0; k < mel::kBins; k++) {
        const float weight = mel::band_weight(k, e0, e1, e2);
        if (weight <= 0.0f) continue;
        if (used == t.start[band]) t.first_bin[band] = k;
        t.weights[used++] = weight;  // a bin lies in two bands at most
      }
    }
    t.start[mel::kBands] = used;
    return t;
  }

 private:
  static double angle(int i, int n) { return 2.0 * std::numbers::pi * i / n; }
  static std::int32_t fixed(double value, int bits) {
    return static_cast<std::int32_t>(std::llround(std::ldexp(value, bits)));
  }
};

}  // namespace lipsync::cuda
