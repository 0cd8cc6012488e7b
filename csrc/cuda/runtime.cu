// SPDX-License-Identifier: Apache-2.0
// What the bindings need of the CUDA runtime; on the host, what stands in its place.
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"

namespace lipsync::cuda {

#if defined(LIPSYNC_EMULATED)

int device_count() { return 0; }

std::string runtime_version() { return "emulated"; }

OnDevice::OnDevice(int) {}
OnDevice::~OnDevice() = default;

int device_of(void*) { return -1; }
void* device_address(void* host) { return host; }

void pin(void*, std::size_t) {}
void unpin(void*) {}

#else

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver: that is an answer, and no error for the next call to find
  return 0;
}

std::string runtime_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

OnDevice::OnDevice(int device) {
  int current = 0;
  detail::check(cudaGetDevice(&current), "asking for the current device");
  if (current == device) return;
  detail::check(cudaSetDevice(device), "choosing a device");
  before_ = current;
}

OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

int device_of(void* address) {
  cudaPointerAttributes found{};
  detail::check(cudaPointerGetAttributes(&found, address), "asking what an address is");
  return found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged ? found.device
                                                                                   : -1;
}

void* device_address(void* host) {
  cudaPointerAttributes found{};
  detail::check(cudaPointerGetAttributes(&found, host), "asking what an address is");
  return found.type == cudaMemoryTypeHost ? found.devicePointer : nullptr;
}

void pin(void* memory, std::size_t bytes) {
  detail::check(cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped),
                "pinning memory");
}

void unpin(void* memory) { detail::check(cudaHostUnregister(memory), "unpinning memory"); }

#endif

}  // namespace lipsync::cuda
