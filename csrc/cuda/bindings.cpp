// SPDX-License-Identifier: Apache-2.0
// The modules `_cuda` and `_emulated` (LIPSYNC_EMULATED): the same functions with the same checks.
// `_cuda` takes arrays in device or pinned memory, `_emulated` in host memory. Importing either
// calls nothing of CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "cuda/array.hpp"
#include "cuda/bind.hpp"
#include "cuda/kernels.hpp"

#if defined(LIPSYNC_EMULATED)
#include "cuda/launch.hpp"
#define LIPSYNC_MODULE _emulated
#define LIPSYNC_CUDA_ARCHITECTURES ""
#else
#define LIPSYNC_MODULE _cuda
#endif

namespace py = pybind11;

namespace lipsync::cuda {

namespace {

py::dict version() {
  py::list architectures;
  const std::string all = LIPSYNC_CUDA_ARCHITECTURES;
  for (std::size_t from = 0; from < all.size();) {
    const std::size_t to = std::min(all.find(' ', from), all.size());
    architectures.append(all.substr(from, to - from));
    from = to + 1;
  }
  py::dict out;
  out["runtime"] = runtime_version();
  out["architectures"] = architectures;
  return out;
}

void pin_buffer(const py::buffer& buffer) {
  const py::buffer_info view = buffer.request(true);
  const auto bytes = static_cast<std::size_t>(view.size * view.itemsize);
  py::gil_scoped_release release;
  pin(view.ptr, bytes);
}

void unpin_buffer(const py::buffer& buffer) {
  const py::buffer_info view = buffer.request(true);
  py::gil_scoped_release release;
  unpin(view.ptr);
}

#if defined(LIPSYNC_EMULATED)
void set_thread_order(const std::string& order) {
  if (order == "forward")
    emulated_order() = Order::kForward;
  else if (order == "backward")
    emulated_order() = Order::kBackward;
  else if (order == "shuffled")
    emulated_order() = Order::kShuffled;
  else
    throw py::value_error("order '" + order + "': expected forward, backward or shuffled");
}
#endif

}  // namespace

PYBIND11_MODULE(LIPSYNC_MODULE, m) {
  m.def("device_count", &device_count, py::call_guard<py::gil_scoped_release>());
  m.def("version", &version);
  m.def("pin", &pin_buffer, py::arg("buffer"));
  m.def("unpin", &unpin_buffer, py::arg("buffer"));
#if defined(LIPSYNC_EMULATED)
  m.def("set_thread_order", &set_thread_order, py::arg("order"));
#endif
  bind_mel(m);
  bind_image(m);
}

}  // namespace lipsync::cuda
