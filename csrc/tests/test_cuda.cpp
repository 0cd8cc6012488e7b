// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels on the host, built with sanitizers: the threads of a block in any order and any
// garbage in shared memory give the same bits; nothing outside an array is touched.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "../cuda/mel_kernel.hpp"
#include "../mel.hpp"

namespace {

using lipsync::cuda::MelKernel;
using lipsync::cuda::MelTables;
using lipsync::cuda::Order;

int failures = 0;

void check(bool good, const char* what) {
  if (good) return;
  std::printf("FAILED: %s\n", what);
  failures++;
}

struct Window {
  std::int32_t offset, low, high, previous;
};

std::vector<float> mel_of(const std::vector<float>& pcm, const std::vector<Window>& windows,
                          Order order = Order::kForward, unsigned char garbage = 0xA5) {
  static const MelTables tables = MelTables::make();
  std::vector<float> out(windows.size() * 80 * 16);
  // Exactly as long as it says, so that a read beyond it is seen.
  const std::vector<float> exact(pcm.begin(), pcm.end());
  const MelKernel::Args args{exact.data(),
                             static_cast<std::int64_t>(exact.size()),
                             reinterpret_cast<const std::int32_t*>(windows.data()),
                             &tables,
                             out.data(),
                             false,
                             lipsync::cuda::Real::kFloat32};
  lipsync::cuda::emulate<MelKernel>({static_cast<int>(windows.size()), MelKernel::kRows}, args,
                                    order, garbage);
  return out;
}

// The largest difference from mel_rows_at for the window that begins with row `first`.
float distance(const std::vector<float>& pcm, int first) {
  const auto got = mel_of(pcm, {{200 * first - 400, 0, static_cast<std::int32_t>(pcm.size()), 0}});
  std::vector<float> expected(16 * 80);
  lipsync::mel_rows_at(pcm.data(), static_cast<std::int64_t>(pcm.size()), 0, first, 16,
                       expected.data());
  float worst = 0.f;
  for (std::size_t row = 0; row < 16; row++)
    for (std::size_t band = 0; band < 80; band++)
      worst = std::max(worst, std::abs(got[band * 16 + row] - expected[row * 80 + band]));
  return worst;
}

void test_mel_order() {
  std::mt19937 random(1);
  std::normal_distribution<float> value(0.f, 0.1f);
  std::vector<float> pcm(9000);
  for (float& v : pcm) v = value(random);
  const std::vector<Window> windows{
      {0, 0, 9000, 0}, {5200, 0, 9000, 0}, {-400, 0, 2000, 0}, {1000, 1200, 1900, 1}};
  const auto expected = mel_of(pcm, windows);
  for (Order order : {Order::kForward, Order::kBackward, Order::kShuffled})
    for (unsigned char garbage : {0x00, 0x7f, 0xff})
      check(mel_of(pcm, windows, order, garbage) == expected,
            "mel: any order and any garbage give the same bits");
}

// The loudest there is, at the signs that add up most: sums must not overflow.
void test_mel_extremes() {
  for (int period = 1; period <= 800; period += period < 60 ? 1 : 37)
    for (float level : {1.f, 0.999999f, 1e30f, 1e-30f}) {
      std::vector<float> pcm(4400);
      for (std::size_t n = 0; n < pcm.size(); n++)
        pcm[n] = std::cos(6.2831853f * static_cast<float>(n) / static_cast<float>(period)) >= 0.f
                     ? level
                     : -level;
      // Beyond [-1, 1] it is for the sanitizer alone.
      check(distance(pcm, 2) < 1e-4f || level > 1.f, "mel: square waves agree with the twin");
    }
  // y itself constant at its largest: x = y / 0.03 (1 - 0.97^n).
  std::vector<float> rising(4400);
  float before = 0.f;
  for (float& v : rising) before = v = 0.99999994f + 0.97f * before;
  check(distance(rising, 0) < 1e-4f, "mel: a constant after pre-emphasis");
}

void test_mel_bounds() {
  const std::vector<float> pcm(1000, 0.5f);
  const int huge = 2147483647;
  const std::vector<Window> windows{{0, -huge - 1, huge, 1}, {-huge - 1, -huge - 1, huge, 1},
                                    {huge, 0, huge, 1},      {999, 999, 1000, 1},
                                    {0, 1000, 0, 1},         {-3000, -3000, 5000, 0}};
  const auto out = mel_of(pcm, windows);
  check(std::all_of(out.begin(), out.end(), [](float v) { return v >= -4.f && v <= 4.f; }),
        "mel: windows that lie anywhere do no harm");
  std::vector<float> odd(4000, 0.1f);
  odd[2000] = NAN;
  odd[2001] = INFINITY;
  const auto broken = mel_of(odd, {{0, 0, 4000, 0}});
  for (std::size_t row = 6; row < 11; row++)  // those that see samples 2000 and 2001
    check(broken[row] == -4.f && broken[79 * 16 + row] == -4.f, "mel: no number, bottom of scale");
  check(mel_of({}, {{0, 0, 100, 0}})[0] == -4.f, "mel: no samples at all");
}

}  // namespace

int main() {
  test_mel_order();
  test_mel_extremes();
  test_mel_bounds();
  if (failures == 0) std::printf("CUDA kernels on the host: all tests passed\n");
  return failures == 0 ? 0 : 1;
}
