// SPDX-License-Identifier: Apache-2.0
// The part of DLPack's binary interface (version 0, capsule "dltensor") that array.hpp reads.
#pragma once

#include <cstdint>

namespace lipsync::cuda::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4 };

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: packed
  std::uint64_t byte_offset;
};

// What a capsule points to begins with the tensor; its owner frees it.
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

}  // namespace lipsync::cuda::dlpack
