// SPDX-License-Identifier: Apache-2.0
// The parts of the modules `_cuda` and `_emulated`.
#pragma once

#include <pybind11/pybind11.h>

namespace lipsync::cuda {

void bind_mel(pybind11::module_& m);    // bind_mel.cpp
void bind_image(pybind11::module_& m);  // bind_image.cpp

}  // namespace lipsync::cuda
