// SPDX-License-Identifier: Apache-2.0
// The upsampling stage for AVX2 and FMA: 8 lanes, 16 registers, 12 of which hold sums.
#if defined(__x86_64__)
#include <immintrin.h>

#include "up_kernel.hpp"

namespace lipsync::up {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kBlock = 4, kVectors = 3;
  using V = __m256;
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static V all(float f) { return _mm256_set1_ps(f); }
  static void pin(V& v) { asm("" : "+x"(v)); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V relu(V a) { return _mm256_max_ps(a, _mm256_setzero_ps()); }
  static V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V power_of_two(V n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static void store_truncated(std::int32_t* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(v));
  }
  static __m256i lanes(const std::int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void pick(const float* from, __m256i lanes, V& a, V& b) {
    const V x = load(from);
    a = _mm256_permutevar8x32_ps(x, lanes);
    b = _mm256_permutevar8x32_ps(x, _mm256_add_epi32(lanes, _mm256_set1_epi32(1)));
  }
};

}  // namespace

const Kernel avx2{"avx2", Avx2::kBlock, scratch_of<Avx2>, run<Avx2>};

}  // namespace lipsync::up
#endif
