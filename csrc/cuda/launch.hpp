// SPDX-License-Identifier: Apache-2.0
// One way to start a kernel of grid.hpp: on the device where nvcc compiles this, on the host where
// LIPSYNC_EMULATED is set (then `stream` means nothing, and it has ended on return).
#pragma once

#include "cuda/grid.hpp"

#if !defined(LIPSYNC_EMULATED)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#endif

namespace lipsync::cuda {

#if defined(LIPSYNC_EMULATED)

// The order in which emulated launches run the threads of a phase; for tests.
inline Order& emulated_order() {
  static Order order = Order::kForward;
  return order;
}

template <class Kernel>
void launch(Grid grid, const typename Kernel::Args& args, Stream) {
  emulate<Kernel>(grid, args, emulated_order());
}

#else

namespace detail {

template <class Kernel, int Phase>
__device__ void run_phases(const typename Kernel::Args& args, typename Kernel::Shared& shared,
                           typename Kernel::Local& local, const Thread& who) {
  Kernel::template phase<Phase>(args, shared, local, who);
  if constexpr (Phase + 1 < Kernel::kPhases) {
    __syncthreads();
    run_phases<Kernel, Phase + 1>(args, shared, local, who);
  }
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    run(const __grid_constant__ typename Kernel::Args args) {
  extern __shared__ __align__(16) unsigned char memory[];
  typename Kernel::Local local;
  Thread who{static_cast<int>(threadIdx.x), static_cast<int>(blockIdx.x),
             static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  auto& shared = *reinterpret_cast<typename Kernel::Shared*>(memory);
  const int rounds = detail::rounds<Kernel>(args, who);
  while (true) {
    run_phases<Kernel, 0>(args, shared, local, who);
    if (++who.round >= rounds) return;
    __syncthreads();
  }
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace detail

// Put a launch on a stream. Throws std::runtime_error where CUDA refuses it.
template <class Kernel>
void launch(Grid grid, const typename Kernel::Args& args, Stream stream) {
  constexpr std::size_t shared = sizeof(typename Kernel::Shared);
  auto* kernel = &detail::run<Kernel>;
  if constexpr (shared > 48 * 1024)  // every time: it holds for the current device alone
    detail::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared)),
                  "shared memory of a kernel");
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  // clang-format off: it would take the brackets apart
  kernel<<<blocks, Kernel::kThreads, shared, queue>>>(args);
  // clang-format on
  detail::check(cudaGetLastError(), "launching a kernel");
}

#endif

}  // namespace lipsync::cuda
