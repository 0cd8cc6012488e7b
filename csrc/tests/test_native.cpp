// SPDX-License-Identifier: Apache-2.0
// The native code without Python, built with sanitizers: edges of sizes, streams in pieces, and
// the transform against its definition.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numbers>
#include <random>
#include <vector>

#include "../fft.hpp"
#include "../image.hpp"
#include "../mel.hpp"

namespace {

int failures = 0;

void check(bool good, const char* what) {
  if (good) return;
  std::printf("FAILED: %s\n", what);
  failures++;
}

void test_fft() {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> value(-1.0, 1.0);
  std::vector<double> x(lipsync::mel::kFft), got(lipsync::mel::kBins);
  for (double& v : x) v = value(random);
  lipsync::RealFft800 fft;
  fft.magnitudes(x.data(), got.data());
  double worst = 0.0;
  for (int k = 0; k < lipsync::mel::kBins; k++) {
    double re = 0.0, im = 0.0;
    for (int n = 0; n < lipsync::mel::kFft; n++) {
      const double angle = 2.0 * std::numbers::pi * k * n / lipsync::mel::kFft;
      re += x[static_cast<std::size_t>(n)] * std::cos(angle);
      im -= x[static_cast<std::size_t>(n)] * std::sin(angle);
    }
    worst = std::max(worst, std::abs(got[static_cast<std::size_t>(k)] - std::hypot(re, im)));
  }
  check(worst < 1e-10, "the transform agrees with its definition");
}

std::vector<float> rows_of(const std::vector<float>& pcm, std::mt19937* random) {
  lipsync::MelStream stream;
  std::vector<float> out;
  std::size_t at = 0;
  while (at < pcm.size()) {
    const std::size_t n =
        random ? std::min<std::size_t>(pcm.size() - at, (*random)() % 1500) : pcm.size();
    std::vector<float> rows(stream.rows_after(n) * lipsync::mel::kBands);
    stream.push(pcm.data() + at, n, rows.data());
    out.insert(out.end(), rows.begin(), rows.end());
    at += n;
  }
  std::vector<float> rows(stream.rows_at_finish() * lipsync::mel::kBands);
  stream.finish(rows.data());
  out.insert(out.end(), rows.begin(), rows.end());
  return out;
}

void test_mel() {
  std::mt19937 random(2);
  std::normal_distribution<float> value(0.0f, 0.1f);
  for (std::size_t size : {0u, 1u, 199u, 200u, 399u, 400u, 401u, 800u, 12345u}) {
    std::vector<float> pcm(size);
    for (float& v : pcm) v = value(random);
    const auto whole = rows_of(pcm, nullptr);
    check(whole.size() == (1 + size / 200) * lipsync::mel::kBands, "1 + n / 200 rows");
    check(rows_of(pcm, &random) == whole, "pieces equal the whole, bit for bit");
  }
  std::vector<float> odd{NAN, INFINITY, -INFINITY, 1e38f, 0.f};
  odd.resize(1000);
  check(rows_of(odd, nullptr).size() == 6 * lipsync::mel::kBands, "odd values do no harm");
}

void test_image() {
  std::mt19937 random(3);
  for (int round = 0; round < 60; round++) {
    const int h = 1 + static_cast<int>(random() % 40), w = 1 + static_cast<int>(random() % 40);
    const int oh = 1 + static_cast<int>(random() % 60), ow = 1 + static_cast<int>(random() % 60);
    std::vector<std::uint8_t> in(static_cast<std::size_t>(h * w * 3), 77);
    std::vector<std::uint8_t> out(static_cast<std::size_t>(oh * ow * 3));
    lipsync::resize({in.data(), h, w, w * 3}, {out.data(), oh, ow, ow * 3}, round % 2 == 1);
    bool flat = true;
    for (std::uint8_t v : out) flat = flat && v == 77;
    check(flat, "a flat picture stays flat at any size");
  }
  constexpr int side = 40, border = 4, r = side - 2 * border;
  std::vector<std::uint8_t> crop(side * side * 3), region(r * r * 3, 200), frame(90 * 70 * 3, 9);
  for (auto& v : crop) v = static_cast<std::uint8_t>(random());
  std::vector<float> input(6 * r * r);
  lipsync::region_input({crop.data(), side, side, side * 3}, border, false, input.data());
  check(input[0] == static_cast<float>(crop[(border * side + border) * 3 + 2]) / 255.0f,
        "the first plane is blue");
  std::vector<std::uint8_t> back(r * r * 3);
  lipsync::region_output(input.data(), r * r, back.data());
  const std::vector<float> odd(3 * r * r, NAN);
  lipsync::region_output(odd.data(), r * r, back.data());
  check(back[0] == 0, "not a number becomes black");
  std::vector<std::uint8_t> keep(50 * 30, 1);
  for (const std::uint8_t* mask :
       {(const std::uint8_t*)nullptr, (const std::uint8_t*)keep.data()}) {
    auto before = frame;
    for (const bool linear : {false, true}) {
      lipsync::compose({crop.data(), side, side, side * 3}, {region.data(), r, r, r * 3}, 4, 4,
                       {frame.data(), 70, 90, 90 * 3}, 40, 40, 50, 30, mask, linear);
      check((frame == before) == (mask != nullptr), "kept pixels stay, others change");
      check(frame[0] == 9, "nothing outside the rectangle changes");
    }
  }
}

}  // namespace

int main() {
  test_fft();
  test_mel();
  test_image();
  std::printf(failures ? "native: %d checks failed\n" : "native: all checks passed\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
