// SPDX-License-Identifier: Apache-2.0
// One upsampling stage of the U-Net's decoder, natively: its weights packed for the kernels of one
// instruction set, and the memory that a call works in. What is computed: up_kernel.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "up_plan.hpp"

namespace lipsync::up {

// Whether this processor can run a kernel.
inline bool runs(const Kernel& kernel) {
#if defined(__x86_64__)
  if (&kernel == &avx512) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
  if (&kernel == &avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &kernel == &portable;
}

// The kernels of this build that this processor can run, the fastest first.
inline std::vector<const Kernel*> kernels() {
  std::vector<const Kernel*> found;
#if defined(__x86_64__)
  for (const Kernel* kernel : {&avx512, &avx2})
    if (runs(*kernel)) found.push_back(kernel);
#endif
  found.push_back(&portable);
  return found;
}

// A matrix or vector of weights, outputs first. It owns nothing.
struct Weights {
  const float* data;
  std::size_t outputs, inputs;  // 9 inputs of a depthwise convolution, 1 of a bias
};

// The stage as the network has it. All sizes are of the map that the stage makes.
struct Description {
  Weights expand_low, expand_high, expand_bias, depthwise, depthwise_bias, project, project_bias;
  Weights expand2, expand2_bias, depthwise2, depthwise2_bias, project2, project2_bias;
  Weights picture, picture_bias;  // data is null but in the last stage
  int height, width;
  int x, y, columns, rows;  // the part to make
};

// Pixels beyond the part to make that its two 3 x 3 convolutions reach.
inline constexpr int kReach = 2;

class Stage {
 public:
  // Throws std::invalid_argument when the shapes do not fit each other.
  Stage(const Kernel& kernel, const Description& d) : kernel_(kernel), plan_{} {
    const auto count = [](std::size_t n) { return static_cast<int>(n); };
    plan_.low = count(d.expand_low.inputs), plan_.skip = count(d.expand_high.inputs);
    plan_.hidden = count(d.expand_low.outputs), plan_.middle = count(d.project.outputs);
    plan_.hidden2 = count(d.expand2.outputs);
    plan_.picture = d.picture.data != nullptr;
    plan_.outputs = plan_.picture ? 3 : plan_.middle;
    check(d);
    plan_.height = d.height, plan_.width = d.width;
    plan_.x = d.x, plan_.y = d.y, plan_.columns = d.columns, plan_.rows = d.rows;
    const auto grown = [](int at, int size, int most, int& from, int& length) {
      from = at < kReach ? 0 : at - kReach;
      const int end = at + size + kReach;
      length = (end > most ? most : end) - from;
    };
    grown(d.x, d.columns, d.width, plan_.skip_x, plan_.skip_columns);
    grown(d.y, d.rows, d.height, plan_.skip_y, plan_.skip_rows);
    pack(d);
    scratch_ = kernel.scratch(plan_);
  }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  const Plan& plan() const { return plan_; }
  const Kernel& kernel() const { return kernel_; }
  std::size_t scratch_floats() const { return scratch_; }

  // See `Kernel`. May be called by many threads at once; each keeps the memory it works in.
  void run(const float* low, const float* skip, float* planes, std::uint8_t* pixels) const {
    kernel_.run(plan_, low, skip, planes, pixels, memory(scratch_));
  }

 private:
  static float* memory(std::size_t floats) {
    struct Buffer {
      float* data = nullptr;
      std::size_t size = 0;
      ~Buffer() { ::operator delete(data, std::align_val_t{64}); }
    };
    thread_local Buffer buffer;
    if (buffer.size < floats) {
      ::operator delete(buffer.data, std::align_val_t{64});
      buffer.data = nullptr, buffer.size = 0;
      buffer.data =
          static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64}));
      buffer.size = floats;
      // Lanes beyond a row are computed too, and ignored; numbers too small to be normal are slow.
      for (std::size_t i = 0; i < floats; i++) buffer.data[i] = 0.f;
    }
    return buffer.data;
  }

  void check(const Description& d) const {
    const auto need = [](const Weights& w, int outputs, int inputs, const char* name) {
      if (!w.data || w.outputs != static_cast<std::size_t>(outputs) ||
          w.inputs != static_cast<std::size_t>(inputs))
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(w.outputs) +
                                    " x " + std::to_string(w.inputs) + " weights: expected " +
                                    std::to_string(outputs) + " x " + std::to_string(inputs));
    };
    for (const int n : {plan_.low, plan_.skip, plan_.hidden, plan_.middle, plan_.hidden2})
      if (n < 1 || n > 1 << 14) throw std::invalid_argument("channels must be 1 to 16384");
    need(d.expand_low, plan_.hidden, plan_.low, "expand_low");
    need(d.expand_high, plan_.hidden, plan_.skip, "expand_high");
    need(d.expand_bias, plan_.hidden, 1, "expand_bias");
    need(d.depthwise, plan_.hidden, 9, "depthwise");
    need(d.depthwise_bias, plan_.hidden, 1, "depthwise_bias");
    need(d.project, plan_.middle, plan_.hidden, "project");
    need(d.project_bias, plan_.middle, 1, "project_bias");
    need(d.expand2, plan_.hidden2, plan_.middle, "expand2");
    need(d.expand2_bias, plan_.hidden2, 1, "expand2_bias");
    need(d.depthwise2, plan_.hidden2, 9, "depthwise2");
    need(d.depthwise2_bias, plan_.hidden2, 1, "depthwise2_bias");
    need(d.project2, plan_.middle, plan_.hidden2, "project2");
    need(d.project2_bias, plan_.middle, 1, "project2_bias");
    if (plan_.picture) {
      need(d.picture, 3, plan_.middle, "picture");
      need(d.picture_bias, 3, 1, "picture_bias");
    }
    const auto inside = [](int at, int size, int most) {
      return at >= 0 && size >= 1 && at <= most && size <= most - at;
    };
    for (const int side : {d.height, d.width})
      if (side < 4 || side > 32766 || side % 2)
        throw std::invalid_argument("sides must be even, 4 to 32766");
    if (!inside(d.x, d.columns, d.width) || !inside(d.y, d.rows, d.height))
      throw std::invalid_argument("the part to make does not lie within the map");
  }

  // Outputs in blocks, as `Plan` says; each block one group of outputs for each input.
  static std::vector<float> blocks(const Weights& w, std::size_t block) {
    const std::size_t padded = (w.outputs + 3) / 4 * 4;
    std::vector<float> out(padded * w.inputs);
    float* to = out.data();
    for (std::size_t o = 0, size; o < padded; o += size) {
      size = padded - o >= block ? block : 4;
      for (std::size_t k = 0; k < w.inputs; k++)
        for (std::size_t m = o; m < o + size; m++)
          *to++ = m < w.outputs ? w.data[m * w.inputs + k] : 0.f;
    }
    return out;
  }

  const float* keep(std::vector<float> packed) {
    kept_.push_back(std::move(packed));
    return kept_.back().data();
  }

  void pack(const Description& d) {
    const auto block = static_cast<std::size_t>(kernel_.block);
    const auto matrix = [&](const Weights& w) { return keep(blocks(w, block)); };
    const auto plain = [&](const Weights& w) {  // a bias, or the weights of a depthwise convolution
      std::vector<float> out((w.outputs + 3) / 4 * 4 * w.inputs);
      for (std::size_t i = 0; i < w.outputs * w.inputs; i++) out[i] = w.data[i];
      return keep(std::move(out));
    };
    plan_.expand_low = matrix(d.expand_low), plan_.expand_high = matrix(d.expand_high);
    plan_.expand_bias = plain(d.expand_bias);
    plan_.depthwise = plain(d.depthwise), plan_.depthwise_bias = plain(d.depthwise_bias);
    plan_.project = matrix(d.project), plan_.project_bias = plain(d.project_bias);
    plan_.expand2 = matrix(d.expand2), plan_.expand2_bias = plain(d.expand2_bias);
    plan_.depthwise2 = plain(d.depthwise2), plan_.depthwise2_bias = plain(d.depthwise2_bias);
    if (!plan_.picture) {
      plan_.project2 = matrix(d.project2), plan_.project2_bias = plain(d.project2_bias);
      return;
    }
    // P (m + Q g + q) + p = P m + (P Q) g + (P q + p): nothing lies between the two convolutions.
    const std::size_t middle = d.picture.inputs, hidden = d.project2.inputs;
    std::vector<float> both(3 * hidden), direct(3 * middle), bias(3);
    for (std::size_t c = 0; c < 3; c++) {
      double b = d.picture_bias.data[c];
      for (std::size_t o = 0; o < middle; o++) {
        direct[3 * o + c] = d.picture.data[c * middle + o];
        b += static_cast<double>(d.picture.data[c * middle + o]) * d.project2_bias.data[o];
      }
      bias[c] = static_cast<float>(b);
      for (std::size_t k = 0; k < hidden; k++) {
        double sum = 0;
        for (std::size_t o = 0; o < middle; o++)
          sum +=
              static_cast<double>(d.picture.data[c * middle + o]) * d.project2.data[o * hidden + k];
        both[3 * k + c] = static_cast<float>(sum);
      }
    }
    plan_.project2 = keep(std::move(both)), plan_.direct = keep(std::move(direct));
    plan_.project2_bias = keep(std::move(bias));
  }

  const Kernel& kernel_;
  Plan plan_;
  std::size_t scratch_ = 0;
  std::vector<std::vector<float>> kept_;
};

}  // namespace lipsync::up
