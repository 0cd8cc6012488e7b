// SPDX-License-Identifier: Apache-2.0
// The upsampling stage in plain C++ (vectors of GCC and Clang, four lanes: SSE2, NEON). It is the
// twin that the others are tested against, and multiplies and adds in two steps.
#include <cmath>
#include <cstring>

#include "up_kernel.hpp"

namespace lipsync::up {
namespace {

struct Portable {
  static constexpr int kLanes = 4, kBlock = 4, kVectors = 3;
  typedef float V __attribute__((vector_size(16)));
  static V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
  static V all(float f) { return V{f, f, f, f}; }
  static void pin(V&) {}
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return c + a * b; }
  static V min(V a, V b) { return a < b ? a : b; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V relu(V a) { return max(a, V{}); }
  static V round(V a) {
    for (int i = 0; i < 4; i++) a[i] = nearbyintf(a[i]);
    return a;
  }
  static V power_of_two(V n) {
    for (int i = 0; i < 4; i++)
      if (n[i] == n[i]) n[i] = ldexpf(1.f, static_cast<int>(n[i]));
    return n;
  }
  static void store_truncated(std::int32_t* p, V v) {
    for (int i = 0; i < 4; i++) p[i] = static_cast<std::int32_t>(v[i]);
  }
  static const std::int32_t* lanes(const std::int32_t* p) { return p; }
  static void pick(const float* from, const std::int32_t* lanes, V& a, V& b) {
    for (int i = 0; i < 4; i++) a[i] = from[lanes[i]], b[i] = from[lanes[i] + 1];
  }
};

}  // namespace

const Kernel portable{"portable", Portable::kBlock, scratch_of<Portable>, run<Portable>};

}  // namespace lipsync::up
