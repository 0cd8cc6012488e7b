// SPDX-License-Identifier: Apache-2.0
// What the kernel files offer to the bindings. Each is built twice, for the device (nvcc) and for
// the host (LIPSYNC_EMULATED); nothing here needs CUDA's headers. Launches are asynchronous on the
// device: memory must live until the stream has passed them. All throw std::runtime_error where
// CUDA refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/grid.hpp"
#include "cuda/half.hpp"

namespace lipsync::cuda {

// runtime.cu

#if defined(LIPSYNC_EMULATED)
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

// GPUs that can be used; 0 without a driver. Never throws.
int device_count();

// The CUDA runtime built in, such as "13.0"; "emulated" on the host.
std::string runtime_version();

// Makes a device the thread's current one for its lifetime.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = -1;
};

// The device whose memory this address lies in; -1: the host's.
int device_of(void* address);

// Where the device sees pinned host memory; null for pageable memory. Emulated: the same address.
void* device_address(void* host);

// Let devices read and write host memory directly (page-locks it), and take that back.
void pin(void* memory, std::size_t bytes);
void unpin(void* memory);

// mel.cu

// Mel windows of a batch: windows[n] = (offset, low, high, previous) as mel_kernel.hpp says.
// pcm: `samples` values, int16 or float32; out: count x 80 x 16 of `type`.
void mel(const void* pcm, bool is_int16, std::int64_t samples, const std::int32_t* windows,
         std::int64_t count, void* out, Real type, Stream stream);

// Multiply-adds of whole numbers (32 x 32 + 64 bits) for one of a window's 16 rows.
int mel_products();

}  // namespace lipsync::cuda
