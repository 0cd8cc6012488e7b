// SPDX-License-Identifier: Apache-2.0
// Real numbers as networks take them: float32, float16 or bfloat16, rounded to nearest even. The
// same bits on the host and on the device.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/grid.hpp"

#if defined(__CUDA_ARCH__)
#include <cuda_fp16.h>
#endif

namespace lipsync::cuda {

enum class Real : std::int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

LIPSYNC_HD inline std::uint32_t float_bits(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

LIPSYNC_HD inline float bits_float(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

LIPSYNC_HD inline std::uint16_t to_bfloat16(float value) {
  const std::uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

LIPSYNC_HD inline float from_bfloat16(std::uint16_t value) {
  return bits_float(static_cast<std::uint32_t>(value) << 16);
}

LIPSYNC_HD inline std::uint16_t to_float16(float value) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(value));
#else
  const std::uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;  // not a number, as the device writes it
    return static_cast<std::uint16_t>(half);
  }
  if (magnitude >= 0x47800000u) {  // 65536 and more
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14 and more: a normal number
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {
    // A multiple of 2^-24: adding 0.5 leaves the rounded multiple in the lowest bits.
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  }
  return static_cast<std::uint16_t>(sign | half);
#endif
}

LIPSYNC_HD inline float from_float16(std::uint16_t value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value));
#else
  const std::uint32_t sign = (value & 0x8000u) << 16, magnitude = value & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return bits_float(sign | ((magnitude << 13) + 0x38000000u));
  const float small = static_cast<float>(magnitude) * (1.0f / 16777216.0f);
  return sign ? -small : small;
#endif
}

// out[at] = value, out being an array of `type`.
LIPSYNC_HD inline void store(void* out, Real type, std::int64_t at, float value) {
  if (type == Real::kFloat32)
    static_cast<float*>(out)[at] = value;
  else
    static_cast<std::uint16_t*>(out)[at] =
        type == Real::kFloat16 ? to_float16(value) : to_bfloat16(value);
}

}  // namespace lipsync::cuda
