// SPDX-License-Identifier: Apache-2.0
// Binding of the mel kernel: check, release the GIL, call.
#include "cuda/array.hpp"
#include "cuda/bind.hpp"
#include "cuda/kernels.hpp"

namespace py = pybind11;

namespace lipsync::cuda {

namespace {

void mel_windows(const py::object& pcm, const py::object& windows, const py::object& out,
                 Stream stream) {
  const Array from = array(pcm, "pcm"), which = array(windows, "windows"), to = array(out, "out");
  from.of({DType::kInt16, DType::kFloat32}, "int16 or float32")
      .shaped({-1}, "one dimension")
      .contiguous();
  which.of({DType::kInt32}, "int32").shaped({-1, 4}, "windows x 4").contiguous();
  const std::int64_t count = which.shape[0];
  to.shaped({count, 1, 80, 16}, "windows x 1 x 80 x 16").contiguous().writable();
  const Real type = real_type(to);
  const int device = common_device({&from, &which, &to});
  const bool is_int16 = from.dtype == DType::kInt16;
  if (count == 0) return;
  py::gil_scoped_release release;
  const OnDevice here(device);
  mel(from.as<void>(), is_int16, from.size(), which.as<std::int32_t>(), count, to.as<void>(), type,
      stream);
}

}  // namespace

void bind_mel(py::module_& m) {
  m.def("mel", &mel_windows, py::arg("pcm"), py::arg("windows"), py::arg("out"),
        py::arg("stream") = Stream{0},
        "Mel windows N x 1 x 80 x 16 of PCM; windows: int32 N x 4 (offset, low, high, previous).");
  m.def("mel_products", &mel_products, "Multiply-adds that one row of a window takes.");
}

}  // namespace lipsync::cuda
