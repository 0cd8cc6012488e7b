// SPDX-License-Identifier: Apache-2.0
// Arrays of any framework as the bindings see them: by DLPack, by __cuda_array_interface__ or, on
// the host, as a buffer. An Array borrows: it keeps its owner alive, but a launch that is still
// under way does not. Errors name the argument.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/dlpack.hpp"
#include "cuda/kernels.hpp"

namespace lipsync::cuda {

enum class DType {
  kFloat32,
  kFloat16,
  kBFloat16,
  kUInt8,
  kUInt16,
  kInt16,
  kInt32,
  kInt64,
  kOther,
};

// Where an argument may lie.
enum class Place {
  kDevice,  // where kernels read and write: device or pinned memory; emulated: host memory
  kHost,    // host memory
};

struct Array {
  std::string name;
  DType dtype = DType::kOther;
  std::string dtype_name;
  std::vector<std::int64_t> shape, strides;  // strides in elements
  int device = -1;                           // -1: host memory
  bool read_only = false;

  // The address that kernels use (Place::kDevice) or the host uses (Place::kHost).
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::int64_t size() const;
  int ndim() const { return static_cast<int>(shape.size()); }
  bool packed() const;  // C order without gaps
  std::string described() const;

  // Refuse (ValueError) what does not fit. A length of -1 stands for any.
  const Array& of(std::initializer_list<DType> dtypes, const char* expected) const;
  const Array& shaped(std::initializer_list<std::int64_t> lengths, const char* expected) const;
  const Array& contiguous() const;
  const Array& writable() const;

  void* data = nullptr;
  pybind11::object owner;
};

// Throws ValueError where `object` is no array, or lies elsewhere than `place` asks.
Array array(const pybind11::object& object, const char* name, Place place = Place::kDevice);

// The float type of an output; ValueError where it has none.
Real real_type(const Array& out);

// The one device of all arrays that lie on one (0 where none does); ValueError for several.
int common_device(std::initializer_list<const Array*> arrays);

}  // namespace lipsync::cuda
