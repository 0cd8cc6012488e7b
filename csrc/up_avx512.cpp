// SPDX-License-Identifier: Apache-2.0
// The upsampling stage for AVX-512 F: 16 lanes, 32 registers, 16 of which hold sums.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 warns of its own header's undefined vectors
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "up_kernel.hpp"

namespace lipsync::up {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16, kBlock = 8, kVectors = 2;
  using V = __m512;
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V all(float f) { return _mm512_set1_ps(f); }
  static void pin(V& v) { asm("" : "+v"(v)); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V relu(V a) { return _mm512_max_ps(a, _mm512_setzero_ps()); }
  static V round(V a) { return _mm512_roundscale_ps(a, 0); }
  static V power_of_two(V n) { return _mm512_scalef_ps(_mm512_set1_ps(1.f), n); }
  static void store_truncated(std::int32_t* p, V v) {
    _mm512_storeu_si512(p, _mm512_cvttps_epi32(v));
  }
  static __m512i lanes(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static void pick(const float* from, __m512i lanes, V& a, V& b) {
    const V x = load(from);
    a = _mm512_permutexvar_ps(lanes, x);
    b = _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(1)), x);
  }
};

}  // namespace

const Kernel avx512{"avx512", Avx512::kBlock, scratch_of<Avx512>, run<Avx512>};

}  // namespace lipsync::up
#endif
