// SPDX-License-Identifier: Apache-2.0
// clang-format off
// A kernel as a list of phases, so that the same code runs on a device and, thread by thread, on a
// host. Between two phases all threads of a block meet:
//
//   device   phase 0 | __syncthreads() | phase 1 | __syncthreads() | phase 2        (launch.hpp)
//   host     phase 0 of every thread of the block, then phase 1 of every thread, …  (emulate)
//
// A kernel is a struct without state:
//
//   struct Kernel {
//     static constexpr int kThreads, kPhases;  // of a block
//     struct Args {…};    // plain values and pointers, copied to the device
//     struct Shared {…};  // a block's shared memory; not initialised
//     struct Local {…};   // what a thread keeps from phase to phase
//     template <int Phase>
//     LIPSYNC_HD static void phase(const Args&, Shared&, Local&, const Thread&);
//   };
//
// Within a phase no thread may read what another one writes in it. The host can run a phase's
// threads in any order (Order): a kernel whose results depend on it has a race.
// clang-format on
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#if defined(__CUDACC__)
#define LIPSYNC_HD __host__ __device__
#else
#define LIPSYNC_HD
#endif

// Before a loop over arrays of a thread, so that they stay in registers.
#if defined(__CUDA_ARCH__)
#define LIPSYNC_UNROLL _Pragma("unroll")
#else
#define LIPSYNC_UNROLL
#endif

namespace lipsync::cuda {

// A cudaStream_t as a number, as frameworks give it; 0 is the default stream.
using Stream = std::uintptr_t;

// Blocks of a launch.
struct Grid {
  int x = 1, y = 1, z = 1;
};

// Who runs: number in its block, the block's place, and which round it is.
struct Thread {
  int number;
  int x, y, z;
  int round = 0;
};

enum class Order { kForward, kBackward, kShuffled };

// Set bits of a word of shared memory that other threads of the block may set bits of too.
LIPSYNC_HD inline void set_bits(std::uint32_t& word, std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  atomicOr(&word, bits);
#else
  word |= bits;
#endif
}

namespace detail {

template <class Kernel>
LIPSYNC_HD int rounds(const typename Kernel::Args& args, const Thread& who) {
  if constexpr (requires { Kernel::rounds(args, who); })
    return Kernel::rounds(args, who);
  else
    return 1;
}

template <class Kernel, int Phase>
void emulate_phases(const typename Kernel::Args& args, typename Kernel::Shared& shared,
                    std::vector<typename Kernel::Local>& locals, const std::vector<int>& order,
                    Thread who) {
  for (int number : order) {
    who.number = number;
    Kernel::template phase<Phase>(args, shared, locals[static_cast<std::size_t>(number)], who);
  }
  if constexpr (Phase + 1 < Kernel::kPhases)
    emulate_phases<Kernel, Phase + 1>(args, shared, locals, order, who);
}

}  // namespace detail

// Run a launch on the host. Shared memory is filled with `garbage` first, as a device's is.
template <class Kernel>
void emulate(Grid grid, const typename Kernel::Args& args, Order how = Order::kForward,
             unsigned char garbage = 0xA5) {
  std::vector<int> order(static_cast<std::size_t>(Kernel::kThreads));
  for (int k = 0; k < Kernel::kThreads; k++)
    order[static_cast<std::size_t>(k)] = how == Order::kBackward ? Kernel::kThreads - 1 - k : k;
  if (how == Order::kShuffled) {
    std::uint32_t state = 12345;
    for (std::size_t k = order.size(); k > 1; k--) {
      state = state * 1664525u + 1013904223u;
      std::swap(order[k - 1], order[(state >> 8) % k]);
    }
  }
  // Plain bytes: a device runs no constructors for shared memory either.
  constexpr std::size_t size = sizeof(typename Kernel::Shared);
  auto memory = std::make_unique<std::max_align_t[]>(size / sizeof(std::max_align_t) + 1);
  auto* bytes = reinterpret_cast<unsigned char*>(memory.get());
  for (int z = 0; z < grid.z; z++)
    for (int y = 0; y < grid.y; y++)
      for (int x = 0; x < grid.x; x++) {
        for (std::size_t k = 0; k < size; k++) bytes[k] = garbage;
        std::vector<typename Kernel::Local> locals(order.size());
        auto& shared = *reinterpret_cast<typename Kernel::Shared*>(bytes);
        const int rounds = detail::rounds<Kernel>(args, Thread{0, x, y, z});
        for (int round = 0; round < rounds; round++)
          detail::emulate_phases<Kernel, 0>(args, shared, locals, order, Thread{0, x, y, z, round});
      }
}

}  // namespace lipsync::cuda
