// SPDX-License-Identifier: Apache-2.0
// Mel rows over a stream of PCM. Row r covers samples 200 r - 400 .. 200 r + 399 (zeros outside),
// is emitted as soon as its last sample is there, and does not depend on how the stream was cut:
// every row is computed by the same code from the same 800 values, so pieces equal the whole bit
// for bit. lipsync_fast/audio/mel_numpy.py is the plain twin.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "fft.hpp"
#include "mel_math.hpp"

namespace lipsync {

// What depends on nothing but the parameters; made once, shared by all streams.
class MelTables {
 public:
  MelTables() {
    for (int n = 0; n < mel::kFft; n++) window_[n] = mel::hann(n);
    for (int b = 0; b < mel::kBands; b++) {
      const double e0 = mel::band_edge(b), e1 = mel::band_edge(b + 1), e2 = mel::band_edge(b + 2);
      first_[b] = -1;
      start_[b] = static_cast<int>(weights_.size());
      for (int k = 0; k < mel::kBins; k++) {
        const float w = mel::band_weight(k, e0, e1, e2);
        if (w <= 0.0f) continue;
        if (first_[b] < 0) first_[b] = k;
        weights_.push_back(w);
      }
    }
    start_[mel::kBands] = static_cast<int>(weights_.size());
  }

  // samples: 800 pre-emphasised values; out: 80 values in [-4, 4].
  void row(const double* samples, float* out) const {
    alignas(64) std::array<double, mel::kFft> x;
    std::array<double, mel::kBins> magnitude;
    for (int n = 0; n < mel::kFft; n++) x[n] = samples[n] * window_[n];
    fft_.magnitudes(x.data(), magnitude.data());
    for (int b = 0; b < mel::kBands; b++) {
      double sum = 0.0;
      const double* m = magnitude.data() + std::max(0, first_[b]);
      for (int i = start_[b]; i < start_[b + 1]; i++) sum += weights_[i] * *m++;
      out[b] = mel::normalise(sum);
    }
  }

  static const MelTables& shared() {
    static const MelTables tables;
    return tables;
  }

 private:
  RealFft800 fft_;
  std::array<double, mel::kFft> window_{};
  std::array<int, mel::kBands> first_{};
  std::array<int, mel::kBands + 1> start_{};
  std::vector<float> weights_;
};

// Rows of a part of a stream, equal bit for bit to what MelStream gives for the whole.
//
// pcm holds the samples start .. start + n - 1. They must reach back to sample 200 first - 401, or
// to the stream's first one; where they end before the last row's window does, so does the sound.
// Writes count x 80 values to out.
inline void mel_rows_at(const float* pcm, std::int64_t n, std::int64_t start, std::int64_t first,
                        std::size_t count, float* out) {
  const std::int64_t from = first * mel::kHop - mel::kFft / 2;
  std::vector<double> buffer((count - 1) * mel::kHop + mel::kFft, 0.0);
  for (std::size_t i = 0; i < buffer.size(); i++) {
    const std::int64_t at = from + static_cast<std::int64_t>(i) - start;
    if (at < 0 || at >= n) continue;
    const double x = static_cast<double>(pcm[at]);
    buffer[i] = at + start == 0 ? x : mel::preemphasis(x, static_cast<double>(pcm[at - 1]));
  }
  const MelTables& tables = MelTables::shared();
  for (std::size_t r = 0; r < count; r++)
    tables.row(buffer.data() + r * mel::kHop, out + r * mel::kBands);
}

class MelStream {
 public:
  MelStream() : buffer_(mel::kFft / 2, 0.0) {}

  // Samples consumed so far.
  std::int64_t samples() const { return samples_; }
  // Rows emitted so far.
  std::int64_t rows() const { return rows_; }

  // Rows that `push` of n more samples will emit.
  std::size_t rows_after(std::size_t n) const {
    const std::int64_t total = samples_ + static_cast<std::int64_t>(n);
    const std::int64_t complete =
        total < mel::kFft / 2 ? 0 : (total - mel::kFft / 2) / mel::kHop + 1;
    return static_cast<std::size_t>(std::max<std::int64_t>(0, complete - rows_));
  }

  // Rows that `finish` will emit: 1 + samples / 200 in all.
  std::size_t rows_at_finish() const {
    return static_cast<std::size_t>(1 + samples_ / mel::kHop - rows_);
  }

  // Consume n samples in [-1, 1]; writes rows_after(n) x 80 values to out.
  void push(const float* pcm, std::size_t n, float* out) {
    if (finished_) throw std::logic_error("MelStream: push after finish");
    buffer_.reserve(buffer_.size() + n);
    for (std::size_t i = 0; i < n; i++) {
      const double x = static_cast<double>(pcm[i]);
      buffer_.push_back(
          samples_ + static_cast<std::int64_t>(i) == 0 ? x : mel::preemphasis(x, previous_));
      previous_ = x;
    }
    const std::size_t ready = rows_after(n);
    samples_ += static_cast<std::int64_t>(n);
    emit(ready, out);
  }

  // The end of the stream: writes rows_at_finish() x 80 values to out.
  void finish(float* out) {
    if (finished_) throw std::logic_error("MelStream: finish called twice");
    finished_ = true;
    const std::size_t rest = rows_at_finish();
    buffer_.resize(buffer_.size() + mel::kFft / 2, 0.0);
    emit(rest, out);
    buffer_.clear();
  }

 private:
  void emit(std::size_t count, float* out) {
    const MelTables& tables = MelTables::shared();
    for (std::size_t r = 0; r < count; r++)
      tables.row(buffer_.data() + r * mel::kHop, out + r * mel::kBands);
    rows_ += static_cast<std::int64_t>(count);
    buffer_.erase(buffer_.begin(),
                  buffer_.begin() + static_cast<std::ptrdiff_t>(count * mel::kHop));
  }

  std::vector<double> buffer_;  // pre-emphasised, from the first sample of the next row's window
  double previous_ = 0.0;
  std::int64_t samples_ = 0, rows_ = 0;
  bool finished_ = false;
};

}  // namespace lipsync
