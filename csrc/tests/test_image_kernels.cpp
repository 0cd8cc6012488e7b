// SPDX-License-Identifier: Apache-2.0
// The image kernels on the host, built with sanitizers: the threads of a block in any order and any
// garbage in shared memory give the same bytes; nothing outside an array is touched. (Arrays are
// exactly as long as they must be.) That the JPEG's bytes are right is tests/unit's to show.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "../cuda/compose_kernel.hpp"
#include "../cuda/jpeg_kernel.hpp"
#include "../image.hpp"

namespace {

using namespace lipsync::cuda;
using Bytes = std::vector<std::uint8_t>;

int failures = 0;
std::mt19937 generator(1);

void check(bool good, const char* what) {
  if (good) return;
  std::printf("FAILED: %s\n", what);
  failures++;
}

int random_up_to(int most) { return static_cast<int>(generator() % (most + 1u)); }

Bytes noise(std::size_t size) {
  Bytes out(size);
  for (auto& v : out) v = static_cast<std::uint8_t>(generator());
  return out;
}

std::size_t bytes_of(int height, int width) {
  return static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3;
}

struct Way {
  Order order;
  unsigned char garbage;
};
constexpr Way kWays[] = {{Order::kForward, 0x00},
                         {Order::kBackward, 0xFF},
                         {Order::kShuffled, 0xA5},
                         {Order::kForward, 0x7F}};

void test_quantised() {
  bool same = true;
  for (int step = 1; step <= 255; step++) {
    const auto by = lipsync::cuda::jpeg::step_of(static_cast<std::uint32_t>(step));
    for (int v = 0; v < 1 << 15; v += step % 16 == 0 ? 1 : 3) {
      const int expected = (v + 4 * step) / (8 * step);
      same &= lipsync::cuda::jpeg::quantised(v, by) == expected;
      same &= lipsync::cuda::jpeg::quantised(-v, by) == -expected;
    }
  }
  check(same, "quantising is a rounded division");
}

// A job of random sizes and what it is about.
struct Composed {
  std::vector<float> planes;
  Bytes crop, pixels, keep, out, expected;
  ComposeJob job{};

  Composed() {
    const int side = 1 + random_up_to(60);
    job.height = 1 + random_up_to(side - 1), job.width = 1 + random_up_to(side - 1);
    job.left = random_up_to(side - job.width), job.top = random_up_to(side - job.height);
    const std::size_t plane =
        static_cast<std::size_t>(job.height) * static_cast<std::size_t>(job.width);
    planes.resize(3 * plane);
    for (auto& v : planes) v = static_cast<float>(generator() % 1200) / 1000.f - 0.1f;
    crop = noise(bytes_of(side, side));
    job.channel = static_cast<std::int32_t>(plane), job.row = job.width, job.column = 1;
    job.side = side, job.share = 1.0f, job.resize = true;
    job.wide = 1 + random_up_to(80), job.high = 1 + random_up_to(80);
    job.x = random_up_to(20), job.y = random_up_to(20);
    job.part_width = job.x + job.wide + random_up_to(20);
    job.part_height = job.y + job.high + random_up_to(20);
    job.linear = random_up_to(1) == 1;
    job.across = lipsync::detail::scale_of(side, job.wide, job.linear);
    job.down = lipsync::detail::scale_of(side, job.high, job.linear);
    pixels = noise(bytes_of(job.part_height, job.part_width));
    if (random_up_to(1)) {
      keep = noise(static_cast<std::size_t>(job.wide) * static_cast<std::size_t>(job.high));
      for (auto& v : keep) v &= 1;
    }
    Bytes region(3 * plane);
    lipsync::region_output(planes.data(), plane, region.data());
    expected = pixels;
    const auto stride = [](int width) { return static_cast<std::ptrdiff_t>(width) * 3; };
    lipsync::compose({crop.data(), side, side, stride(side)},
                     {region.data(), job.height, job.width, stride(job.width)}, job.left, job.top,
                     {expected.data(), job.part_height, job.part_width, stride(job.part_width)},
                     job.x, job.y, job.wide, job.high, keep.empty() ? nullptr : keep.data(),
                     job.linear);
    out.resize(pixels.size());
    job.planes = planes.data(), job.crop = crop.data(), job.pixels = pixels.data();
    job.keep = keep.empty() ? nullptr : keep.data(), job.out = out.data();
  }
};

void test_compose() {
  for (int n = 0; n < 60; n++) {
    std::vector<Composed> jobs(3);
    const auto args = std::make_unique<Compose::Args>();
    Grid grid{1, 1, 3};
    for (std::size_t k = 0; k < jobs.size(); k++) {
      const ComposeJob& job = args->jobs[k] = jobs[k].job;
      grid.x = std::max(grid.x, (job.part_width + Compose::kWide - 1) / Compose::kWide);
      grid.y = std::max(grid.y, (job.part_height + Compose::kHigh - 1) / Compose::kHigh);
    }
    for (const Way& way : kWays) {
      for (auto& j : jobs) std::fill(j.out.begin(), j.out.end(), std::uint8_t{0x5A});
      emulate<Compose>(grid, *args, way.order, way.garbage);
      for (const auto& j : jobs) check(j.out == j.expected, "compose is the host's");
    }
  }
}

void test_region_input() {
  for (int r : {16, 33, 64}) {
    const int side = r + 8;
    const Bytes crop = noise(bytes_of(side, side));
    const auto size = static_cast<std::size_t>(6 * r * r);
    std::vector<float> expected(size), out(size);
    const bool half = r == 33;
    lipsync::region_input({crop.data(), side, side, side * 3}, 4, half, expected.data());
    RegionInput::Args args{};
    args.half = half;
    args.crops[0] = crop.data(), args.region = r, args.border = 4, args.out = out.data();
    args.type = Real::kFloat32;
    args.picture = 6 * r * r, args.channel = r * r, args.row = r, args.column = 1;
    constexpr int pixels = RegionInput::kThreads * RegionInput::kEach;
    for (const Way& way : kWays) {
      std::fill(out.begin(), out.end(), -1.0f);
      emulate<RegionInput>({(r * r + pixels - 1) / pixels, 1, 1}, args, way.order, way.garbage);
      check(out == expected, "the network's input is the host's");
    }
  }
}

struct Coded {
  Bytes pixels, out, first;
  jpeg::Picture picture{};

  explicit Coded(int kind) {
    picture.width = 1 + random_up_to(70), picture.height = 1 + random_up_to(50);
    constexpr int intervals[] = {1, 2, 4, 5, 9, 65535};
    picture.interval = intervals[random_up_to(5)];
    picture.across = (picture.width + 15) / 16;
    picture.units = picture.across * ((picture.height + 15) / 16);
    picture.slot = jpeg::slot_bytes(std::min(picture.interval, picture.units));
    picture.stride = 3 * picture.width + random_up_to(9);
    // The last row ends with its pixels.
    pixels = noise(static_cast<std::size_t>(picture.stride * (picture.height - 1)) +
                   static_cast<std::size_t>(3 * picture.width));
    if (kind == 1)
      for (auto& v : pixels) v = v & 1 ? 255 : 0;
    if (kind == 2) std::fill(pixels.begin(), pixels.end(), std::uint8_t{77});
    out.resize(static_cast<std::size_t>(picture.slot * jpeg::segments_of(picture)));
    picture.pixels = pixels.data(), picture.out = out.data();
  }
};

// Is every 255 followed by a 0?
bool stuffed(const std::uint8_t* data, int size) {
  for (int k = 0; k < size; k++)
    if (data[k] == 0xFF && (k + 1 == size || data[k + 1] != 0)) return false;
  return true;
}

void test_jpeg() {
  std::vector<std::uint16_t> steps(128);
  for (int n = 0; n < 90; n++) {
    std::uint16_t table[2][64];
    jpeg::quant_tables(n % 3 == 0 ? 100 : 1 + random_up_to(99), table);
    std::copy_n(&table[0][0], 128, steps.begin());
    std::vector<Coded> pictures;
    for (int k = 0; k < 3; k++) pictures.emplace_back((n + k) % 3);
    const auto args = std::make_unique<jpeg::Encode::Args>();
    const auto gathered = std::make_unique<jpeg::GatherArgs>();
    int total = 0, most = 0;
    for (std::size_t k = 0; k < 3; k++) {
      auto& p = pictures[k].picture;
      p.pixels = pictures[k].pixels.data(), p.out = pictures[k].out.data();
      p.segment = total;
      args->pictures[k] = p;
      gathered->pictures[k] = {p.segment, total, p.slot, p.out};
      total += jpeg::segments_of(p);
      most = std::max(most, jpeg::segments_of(p));
    }
    std::vector<std::int32_t> sizes(static_cast<std::size_t>(total)), first;
    args->tables = steps.data(), args->sizes = sizes.data();
    for (const Way& way : kWays) {
      for (auto& p : pictures) std::fill(p.out.begin(), p.out.end(), std::uint8_t{0x5A});
      emulate<jpeg::Encode>({most, 1, 3}, *args, way.order, way.garbage);
      for (auto& p : pictures) {
        if (&way == kWays) p.first = p.out;
        check(p.out == p.first, "coded bytes do not depend on the threads' order");
      }
      if (&way == kWays) first = sizes;
      check(sizes == first, "sizes do not depend on the threads' order");
    }
    Bytes whole;
    for (const auto& p : pictures)
      for (int s = 0; s < jpeg::segments_of(p.picture); s++) {
        const int size = sizes[static_cast<std::size_t>(p.picture.segment + s)];
        const std::uint8_t* data = p.out.data() + s * p.picture.slot;
        check(size > 0 && size <= p.picture.slot && stuffed(data, size), "segments are whole");
        whole.insert(whole.end(), data, data + size);
      }
    std::vector<std::int32_t> offsets(static_cast<std::size_t>(total) + 1);
    for (std::size_t room : {whole.size(), whole.size() / 2, std::size_t{0}}) {
      struct Free {
        void operator()(void* p) const { std::free(p); }
      };
      const std::size_t aligned = (room + 15) / 16 * 16;
      std::unique_ptr<std::uint8_t, Free> packed(
          static_cast<std::uint8_t*>(std::aligned_alloc(16, std::max<std::size_t>(16, aligned))));
      std::fill_n(packed.get(), aligned, std::uint8_t{0x5A});
      gathered->count = 3, gathered->total = total, gathered->sizes = sizes.data();
      gathered->offsets = offsets.data(), gathered->packed = packed.get();
      gathered->capacity = static_cast<std::int64_t>(room), gathered->blocks = 2;
      for (const Way& way : kWays) {
        emulate<jpeg::Offsets>({}, *gathered, way.order, way.garbage);
        emulate<jpeg::Gather>({2, 1, 1}, *gathered, way.order, way.garbage);
        check(static_cast<std::size_t>(offsets.back()) == whole.size(), "offsets end with all");
        check(std::equal(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(room),
                         packed.get()),
              "gathered bytes are those of the slots");
        check(std::all_of(packed.get() + room, packed.get() + aligned,
                          [](std::uint8_t v) { return v == 0x5A; }),
              "nothing is written beyond the room");
      }
    }
  }
}

}  // namespace

int main() {
  test_quantised();
  test_compose();
  test_region_input();
  test_jpeg();
  if (failures == 0) std::printf("image kernels: all good\n");
  return failures == 0 ? 0 : 1;
}
