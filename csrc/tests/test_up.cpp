// SPDX-License-Identifier: Apache-2.0
// The upsampling stage without Python, built with sanitizers: every kernel that this processor can
// run against a plain loop over the definition, on odd sizes, parts and numbers of channels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "../image.hpp"
#include "../up_stage.hpp"

namespace {

using lipsync::up::Description;
using lipsync::up::Weights;
using Map = std::vector<double>;  // channels first

int failures = 0;

void check(bool good, const char* what, const char* kernel) {
  if (good) return;
  std::printf("FAILED: %s (%s)\n", what, kernel);
  failures++;
}

struct Case {
  std::mt19937 random;
  std::deque<std::vector<float>> kept;
  Description d{};
  std::vector<float> low, skip;
  int skip_x = 0, skip_y = 0, skip_columns = 0, skip_rows = 0;

  int pick(int from, int to) { return from + static_cast<int>(random() % (to - from + 1u)); }
  std::vector<float> values(std::size_t n, float scale) {
    std::normal_distribution<float> value(0.f, scale);
    std::vector<float> out(n);
    for (float& v : out) v = value(random);
    return out;
  }
  Weights weights(int outputs, int inputs) {
    const auto o = static_cast<std::size_t>(outputs), i = static_cast<std::size_t>(inputs);
    kept.push_back(values(o * i, 1.f / std::sqrt(static_cast<float>(inputs))));
    return {kept.back().data(), o, i};
  }

  Case(unsigned seed, bool picture, bool large = false) : random(seed) {
    const int a = pick(1, 9), b = pick(1, 9), h = large ? pick(90, 130) : pick(1, 21),
              o = pick(1, 11), g = pick(1, 19);
    d.expand_low = weights(h, a), d.expand_high = weights(h, b), d.expand_bias = weights(h, 1);
    d.depthwise = weights(h, 9), d.depthwise_bias = weights(h, 1);
    d.project = weights(o, h), d.project_bias = weights(o, 1);
    d.expand2 = weights(g, o), d.expand2_bias = weights(g, 1);
    d.depthwise2 = weights(g, 9), d.depthwise2_bias = weights(g, 1);
    d.project2 = weights(o, g), d.project2_bias = weights(o, 1);
    if (picture) d.picture = weights(3, o), d.picture_bias = weights(3, 1);
    d.height = 2 * pick(2, large ? 4 : 12), d.width = 2 * (large ? pick(150, 260) : pick(2, 60));
    d.columns = pick(large ? 280 : 1, d.width), d.rows = pick(1, d.height);
    d.x = pick(0, d.width - d.columns), d.y = pick(0, d.height - d.rows);
    skip_x = std::max(0, d.x - 2), skip_y = std::max(0, d.y - 2);
    skip_columns = std::min(d.width, d.x + d.columns + 2) - skip_x;
    skip_rows = std::min(d.height, d.y + d.rows + 2) - skip_y;
    low = values(static_cast<std::size_t>(a * (d.height / 2) * (d.width / 2)), 1.f);
    skip = values(static_cast<std::size_t>(b * skip_rows * skip_columns), 1.f);
  }
};

// 1x1 or 3x3 depthwise over a map of height x width; out of it there are zeros.
Map convolve(const Map& in, const Weights& w, const Weights& bias, int height, int width,
             bool depthwise, bool relu) {
  const std::size_t plane = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  Map out(w.outputs * plane);
  for (std::size_t o = 0; o < w.outputs; o++)
    for (int y = 0; y < height; y++)
      for (int x = 0; x < width; x++) {
        double sum = bias.data ? bias.data[o] : 0.0;
        const auto at = [&](int yy, int xx) {
          return static_cast<std::size_t>(yy) * static_cast<std::size_t>(width) +
                 static_cast<std::size_t>(xx);
        };
        for (std::size_t k = 0; k < w.inputs; k++) {
          if (!depthwise) {
            sum += w.data[o * w.inputs + k] * in[k * plane + at(y, x)];
            continue;
          }
          const int yy = y + static_cast<int>(k) / 3 - 1, xx = x + static_cast<int>(k) % 3 - 1;
          if (yy >= 0 && yy < height && xx >= 0 && xx < width)
            sum += w.data[o * 9 + k] * in[o * plane + at(yy, xx)];
        }
        out[o * plane + at(y, x)] = relu && sum < 0 ? 0.0 : sum;
      }
  return out;
}

// The stage as the network defines it, on the whole map (zeros where the skip tensor is not held).
Map reference(const Case& c) {
  const Description& d = c.d;
  const int h = d.height, w = d.width;
  const std::size_t plane = static_cast<std::size_t>(h) * static_cast<std::size_t>(w);
  Map low(d.expand_low.inputs * plane), skip(d.expand_high.inputs * plane);
  for (std::size_t k = 0; k < d.expand_low.inputs; k++)
    for (int y = 0; y < h; y++)
      for (int x = 0; x < w; x++) {
        const double fy = y * (h / 2 - 1.0) / (h - 1), fx = x * (w / 2 - 1.0) / (w - 1);
        const int y0 = std::min(static_cast<int>(fy), h / 2 - 2);
        const int x0 = std::min(static_cast<int>(fx), w / 2 - 2);
        const auto in = [&](int yy, int xx) {
          return static_cast<double>(
              c.low[k * (plane / 4) + static_cast<std::size_t>(yy * (w / 2) + xx)]);
        };
        const double top = in(y0, x0) + (in(y0, x0 + 1) - in(y0, x0)) * (fx - x0);
        const double bottom = in(y0 + 1, x0) + (in(y0 + 1, x0 + 1) - in(y0 + 1, x0)) * (fx - x0);
        low[k * plane + static_cast<std::size_t>(y * w + x)] = top + (bottom - top) * (fy - y0);
      }
  for (std::size_t k = 0; k < d.expand_high.inputs; k++)
    for (int y = 0; y < c.skip_rows; y++)
      for (int x = 0; x < c.skip_columns; x++)
        skip[k * plane + static_cast<std::size_t>((y + c.skip_y) * w + x + c.skip_x)] =
            c.skip[(k * static_cast<std::size_t>(c.skip_rows) + static_cast<std::size_t>(y)) *
                       static_cast<std::size_t>(c.skip_columns) +
                   static_cast<std::size_t>(x)];
  Map e = convolve(low, d.expand_low, {}, h, w, false, false);
  const Map s = convolve(skip, d.expand_high, d.expand_bias, h, w, false, false);
  for (std::size_t i = 0; i < e.size(); i++) e[i] = std::max(0.0, e[i] + s[i]);
  const Map t = convolve(e, d.depthwise, d.depthwise_bias, h, w, true, true);
  const Map m = convolve(t, d.project, d.project_bias, h, w, false, false);
  Map g = convolve(m, d.expand2, d.expand2_bias, h, w, false, true);
  g = convolve(g, d.depthwise2, d.depthwise2_bias, h, w, true, true);
  Map y = convolve(g, d.project2, d.project2_bias, h, w, false, false);
  for (std::size_t i = 0; i < y.size(); i++) y[i] += m[i];
  if (!d.picture.data) return y;
  y = convolve(y, d.picture, d.picture_bias, h, w, false, false);
  for (double& v : y) v = 1.0 / (1.0 + std::exp(-v));
  return y;
}

void test_stage(const lipsync::up::Kernel& kernel, unsigned seed, bool picture, bool large) {
  const Case c(seed, picture, large);
  const Description& d = c.d;
  const lipsync::up::Stage stage(kernel, d);
  const auto part = static_cast<std::size_t>(d.rows) * static_cast<std::size_t>(d.columns);
  const std::size_t channels = picture ? 3 : d.project.outputs;
  std::vector<float> planes(channels * part, -9.f);
  stage.run(c.low.data(), c.skip.data(), planes.data(), nullptr);
  const Map wanted = reference(c);
  double worst = 0;
  for (std::size_t k = 0; k < channels; k++)
    for (int y = 0; y < d.rows; y++)
      for (int x = 0; x < d.columns; x++)
        worst = std::max(worst,
                         std::abs(planes[k * part + static_cast<std::size_t>(y * d.columns + x)] -
                                  wanted[(k * static_cast<std::size_t>(d.height) +
                                          static_cast<std::size_t>(y + d.y)) *
                                             static_cast<std::size_t>(d.width) +
                                         static_cast<std::size_t>(x + d.x)]));
  check(worst < (picture ? 2e-6 : 2e-5), "a stage is what its definition says", kernel.name);
  if (!picture) return;
  std::vector<std::uint8_t> pixels(3 * part, 77), expected(3 * part);
  stage.run(c.low.data(), c.skip.data(), nullptr, pixels.data());
  lipsync::region_output(planes.data(), part, expected.data());
  check(pixels == expected, "pixels are the planes, times 255, truncated", kernel.name);
}

void test_odd_values(const lipsync::up::Kernel& kernel) {
  Case c(5, true);
  for (float& v : c.low) v = NAN;
  for (float& v : c.skip) v = INFINITY;
  const lipsync::up::Stage stage(kernel, c.d);
  std::vector<std::uint8_t> pixels(3 * static_cast<std::size_t>(c.d.rows * c.d.columns), 77);
  stage.run(c.low.data(), c.skip.data(), nullptr, pixels.data());
}

void test_threads(const lipsync::up::Kernel& kernel) {
  const Case c(11, true), other(12, false);
  const lipsync::up::Stage stage(kernel, c.d), second(kernel, other.d);
  const std::size_t size = 3 * static_cast<std::size_t>(c.d.rows * c.d.columns);
  std::vector<std::uint8_t> alone(size);
  stage.run(c.low.data(), c.skip.data(), nullptr, alone.data());
  std::vector<std::thread> threads;
  std::vector<std::vector<std::uint8_t>> made(3, std::vector<std::uint8_t>(size));
  for (auto& pixels : made)
    threads.emplace_back([&] {
      std::vector<float> planes(other.d.project.outputs *
                                static_cast<std::size_t>(other.d.rows * other.d.columns));
      for (int i = 0; i < 3; i++) {
        second.run(other.low.data(), other.skip.data(), planes.data(), nullptr);
        stage.run(c.low.data(), c.skip.data(), nullptr, pixels.data());
      }
    });
  for (auto& thread : threads) thread.join();
  for (const auto& pixels : made)
    check(pixels == alone, "the same bytes in every thread", kernel.name);
}

void test_refused() {
  Case c(3, true);
  const auto refused = [&](auto change) {
    Description d = c.d;
    change(d);
    try {
      const lipsync::up::Stage stage(lipsync::up::portable, d);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  check(refused([](Description& d) { d.depthwise.inputs = 8; }), "wrong shapes", "refused");
  check(refused([](Description& d) { d.project2.data = nullptr; }), "missing weights", "refused");
  check(refused([](Description& d) { d.picture.outputs = 4; }), "four planes", "refused");
  check(refused([](Description& d) { d.height++; }), "odd heights", "refused");
  check(refused([](Description& d) { d.x = d.width; }), "parts outside", "refused");
  check(refused([](Description& d) { d.rows = 0; }), "empty parts", "refused");
}

}  // namespace

int main() {
  for (const auto* kernel : lipsync::up::kernels()) {
    for (unsigned seed = 0; seed < 60; seed++) {
      const bool large = seed < 4;  // several strips
      test_stage(*kernel, seed, seed % 2 != 0, large);
    }
    test_odd_values(*kernel);
    test_threads(*kernel);
    std::printf("%s: checked\n", kernel->name);
  }
  test_refused();
  std::printf(failures ? "up: %d checks failed\n" : "up: all checks passed\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
