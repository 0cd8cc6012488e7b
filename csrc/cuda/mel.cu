// SPDX-License-Identifier: Apache-2.0
// Launches mel_kernel.hpp; its tables are put on a device when it is first used there.
#include <array>
#include <mutex>
#include <stdexcept>

#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/mel_kernel.hpp"

namespace lipsync::cuda {

namespace {

#if defined(LIPSYNC_EMULATED)

const MelTables* tables_here() {
  static const MelTables tables = MelTables::make();
  return &tables;
}

#else

// On a stream of its own and without CUDA's check for captures, so that the first use may be
// within one. They stay until the process ends.
const MelTables* upload() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  detail::check(cudaThreadExchangeStreamCaptureMode(&mode), "preparing the mel tables");
  const MelTables tables = MelTables::make();
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  cudaError_t status = cudaMalloc(&memory, sizeof tables);
  if (status == cudaSuccess) status = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(memory, &tables, sizeof tables, cudaMemcpyHostToDevice, stream);
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  if (stream) cudaStreamDestroy(stream);
  if (status != cudaSuccess) cudaFree(memory);
  cudaThreadExchangeStreamCaptureMode(&mode);
  detail::check(status, "putting the mel tables on the device");
  return static_cast<const MelTables*>(memory);
}

const MelTables* tables_here() {
  constexpr int kDevices = 64;
  static std::mutex mutex;
  static std::array<const MelTables*, kDevices> tables{};
  int device = 0;
  detail::check(cudaGetDevice(&device), "asking for the current device");
  if (device >= kDevices) throw std::runtime_error("device numbers above 63 are not supported");
  const std::lock_guard lock(mutex);
  const MelTables*& found = tables[static_cast<std::size_t>(device)];
  if (!found) found = upload();
  return found;
}

#endif

}  // namespace

void mel(const void* pcm, bool is_int16, std::int64_t samples, const std::int32_t* windows,
         std::int64_t count, void* out, Real type, Stream stream) {
  const MelKernel::Args args{pcm, samples, windows, tables_here(), out, is_int16, type};
  launch<MelKernel>(Grid{static_cast<int>(count), MelKernel::kRows}, args, stream);
}

int mel_products() { return MelKernel::kProducts; }

}  // namespace lipsync::cuda
