// SPDX-License-Identifier: Apache-2.0
// Magnitudes of an 800-point real transform: a 400-point complex Stockham FFT (5 x 5 x 4 x 4) of
// the even and odd samples, then the split into 401 bins. Double precision, split re/im arrays.
#pragma once

#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "mel_math.hpp"

namespace lipsync {

class RealFft800 {
 public:
  static constexpr int kHalf = mel::kFft / 2;  // 400 complex points

  RealFft800() {
    int n = kHalf;
    for (int radix : kRadices) {
      const int m = n / radix;
      for (int p = 0; p < m; p++)
        for (int k = 1; k < radix; k++) {
          const double angle = -2.0 * std::numbers::pi * p * k / n;
          twiddle_.push_back(std::cos(angle));
          twiddle_.push_back(std::sin(angle));
        }
      n = m;
    }
    for (int k = 0; k <= kHalf; k++) {
      const double angle = -std::numbers::pi * k / kHalf;
      split_re_[k] = std::cos(angle);
      split_im_[k] = std::sin(angle);
    }
  }

  // in: 800 samples; out: 401 magnitudes. Thread-safe: scratch lies on the stack.
  void magnitudes(const double* in, double* out) const {
    alignas(64) double re[2][kHalf], im[2][kHalf];
    for (int i = 0; i < kHalf; i++) {
      re[0][i] = in[2 * i];
      im[0][i] = in[2 * i + 1];
    }
    const double* w = twiddle_.data();
    int n = kHalf, stride = 1, from = 0;
    for (int radix : kRadices) {
      if (radix == 5)
        pass5(n / 5, stride, w, re[from], im[from], re[1 - from], im[1 - from]);
      else
        pass4(n / 4, stride, w, re[from], im[from], re[1 - from], im[1 - from]);
      w += 2 * (n / radix) * (radix - 1);
      n /= radix;
      stride *= radix;
      from = 1 - from;
    }
    for (int k = 0; k <= kHalf; k++) {
      const int a = k == kHalf ? 0 : k, b = k == 0 ? 0 : kHalf - k;
      const double ar = re[from][a], ai = im[from][a], br = re[from][b], bi = -im[from][b];
      const double er = 0.5 * (ar + br), ei = 0.5 * (ai + bi);  // transform of the even samples
      const double dr = 0.5 * (ar - br), di = 0.5 * (ai - bi);  // i times that of the odd ones
      const double odd_r = di, odd_i = -dr;
      const double xr = er + split_re_[k] * odd_r - split_im_[k] * odd_i;
      const double xi = ei + split_re_[k] * odd_i + split_im_[k] * odd_r;
      out[k] = std::sqrt(xr * xr + xi * xi);
    }
  }

 private:
  static constexpr std::array<int, 4> kRadices{5, 5, 4, 4};

  static void pass4(int m, int s, const double* w, const double* xr, const double* xi, double* yr,
                    double* yi) {
    for (int p = 0; p < m; p++, w += 6) {
      for (int q = 0; q < s; q++) {
        const int i0 = q + s * p, i1 = i0 + s * m, i2 = i1 + s * m, i3 = i2 + s * m;
        const double ar = xr[i0] + xr[i2], ai = xi[i0] + xi[i2];
        const double br = xr[i0] - xr[i2], bi = xi[i0] - xi[i2];
        const double cr = xr[i1] + xr[i3], ci = xi[i1] + xi[i3];
        const double dr = xi[i1] - xi[i3], di = xr[i3] - xr[i1];  // -i (x1 - x3)
        const int o = q + s * 4 * p;
        yr[o] = ar + cr;
        yi[o] = ai + ci;
        store(yr, yi, o + s, w, br + dr, bi + di);
        store(yr, yi, o + 2 * s, w + 2, ar - cr, ai - ci);
        store(yr, yi, o + 3 * s, w + 4, br - dr, bi - di);
      }
    }
  }

  static void pass5(int m, int s, const double* w, const double* xr, const double* xi, double* yr,
                    double* yi) {
    constexpr double c1 = 0.30901699437494742410, c2 = -0.80901699437494742410;
    constexpr double s1 = 0.95105651629515357212, s2 = 0.58778525229247312917;
    for (int p = 0; p < m; p++, w += 8) {
      for (int q = 0; q < s; q++) {
        const int i0 = q + s * p, d = s * m;
        const double x0r = xr[i0], x0i = xi[i0];
        const double ar = xr[i0 + d] + xr[i0 + 4 * d], ai = xi[i0 + d] + xi[i0 + 4 * d];
        const double br = xr[i0 + d] - xr[i0 + 4 * d], bi = xi[i0 + d] - xi[i0 + 4 * d];
        const double cr = xr[i0 + 2 * d] + xr[i0 + 3 * d], ci = xi[i0 + 2 * d] + xi[i0 + 3 * d];
        const double dr = xr[i0 + 2 * d] - xr[i0 + 3 * d], di = xi[i0 + 2 * d] - xi[i0 + 3 * d];
        const double ur = x0r + c1 * ar + c2 * cr, ui = x0i + c1 * ai + c2 * ci;
        const double vr = x0r + c2 * ar + c1 * cr, vi = x0i + c2 * ai + c1 * ci;
        const double pr = s1 * bi + s2 * di, pi = -(s1 * br + s2 * dr);  // -i (s1 b + s2 d)
        const double zr = s2 * bi - s1 * di, zi = -(s2 * br - s1 * dr);  // -i (s2 b - s1 d)
        const int o = q + s * 5 * p;
        yr[o] = x0r + ar + cr;
        yi[o] = x0i + ai + ci;
        store(yr, yi, o + s, w, ur + pr, ui + pi);
        store(yr, yi, o + 2 * s, w + 2, vr + zr, vi + zi);
        store(yr, yi, o + 3 * s, w + 4, vr - zr, vi - zi);
        store(yr, yi, o + 4 * s, w + 6, ur - pr, ui - pi);
      }
    }
  }

  static void store(double* yr, double* yi, int o, const double* w, double r, double i) {
    yr[o] = r * w[0] - i * w[1];
    yi[o] = r * w[1] + i * w[0];
  }

  std::vector<double> twiddle_;
  std::array<double, kHalf + 1> split_re_{}, split_im_{};
};

}  // namespace lipsync
