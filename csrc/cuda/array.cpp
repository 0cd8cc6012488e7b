// SPDX-License-Identifier: Apache-2.0
#include "cuda/array.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <utility>

namespace py = pybind11;

namespace lipsync::cuda {

namespace {

[[noreturn]] void fail(const std::string& what) { throw py::value_error(what); }

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t k = 0; k < shape.size(); k++) text += (k ? ", " : "") + std::to_string(shape[k]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// kind: 'f' float, 'b' bfloat, 'i' signed, 'u' unsigned.
DType dtype_of(char kind, std::size_t bytes) {
  if (kind == 'f' && bytes == 4) return DType::kFloat32;
  if (kind == 'f' && bytes == 2) return DType::kFloat16;
  if (kind == 'b' && bytes == 2) return DType::kBFloat16;
  if (kind == 'u' && bytes == 1) return DType::kUInt8;
  if (kind == 'u' && bytes == 2) return DType::kUInt16;
  if (kind == 'i' && bytes == 2) return DType::kInt16;
  if (kind == 'i' && bytes == 4) return DType::kInt32;
  if (kind == 'i' && bytes == 8) return DType::kInt64;
  return DType::kOther;
}

std::string name_of(char kind, std::size_t bytes) {
  const std::string word = kind == 'f'   ? "float"
                           : kind == 'b' ? "bfloat"
                           : kind == 'i' ? "int"
                           : kind == 'u' ? "uint"
                                         : "other";
  return word + std::to_string(8 * bytes);
}

std::vector<std::int64_t> packed_strides(const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> strides(shape.size());
  std::int64_t step = 1;
  for (std::size_t k = shape.size(); k-- > 0; step *= shape[k]) strides[k] = step;
  return strides;
}

void set_type(Array& a, char kind, std::size_t bytes) {
  a.dtype = dtype_of(kind, bytes);
  a.dtype_name = name_of(kind, bytes);
}

// Strides come in bytes.
void set_strides(Array& a, const std::vector<std::int64_t>& strides, std::int64_t bytes) {
  for (std::int64_t stride : strides) {
    if (bytes == 0 || stride % bytes) fail(a.name + ": its strides are not whole elements");
    a.strides.push_back(stride / bytes);
  }
}

void from_buffer(Array& a, const py::object& object) {
  auto buffer =
      std::make_unique<py::buffer_info>(py::reinterpret_borrow<py::buffer>(object).request());
  const char code = buffer->format.size() == 1 ? buffer->format[0] : '?';
  const std::string signed_codes = "bhilq", unsigned_codes = "BHILQ", float_codes = "efd";
  const char kind = signed_codes.find(code) != std::string::npos     ? 'i'
                    : unsigned_codes.find(code) != std::string::npos ? 'u'
                    : float_codes.find(code) != std::string::npos    ? 'f'
                                                                     : '?';
  set_type(a, kind, static_cast<std::size_t>(buffer->itemsize));
  a.shape.assign(buffer->shape.begin(), buffer->shape.end());
  set_strides(a, {buffer->strides.begin(), buffer->strides.end()}, buffer->itemsize);
  a.read_only = buffer->readonly;
  a.data = buffer->ptr;
  // The view pins the memory of objects that could move it, such as a bytearray.
  a.owner =
      py::capsule(buffer.release(), [](void* view) { delete static_cast<py::buffer_info*>(view); });
}

void from_dlpack(Array& a, const py::object& object) {
  const auto where = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  const bool device = where.first == dlpack::kCuda || where.first == dlpack::kCudaManaged;
  if (!device && where.first != dlpack::kCpu && where.first != dlpack::kCudaHost)
    fail(a.name + ": its memory is neither a CUDA device's nor the host's");
  // Stream -1: nobody waits here; the caller orders the work by the stream it passes.
  const py::object capsule =
      device ? object.attr("__dlpack__")(py::arg("stream") = -1) : object.attr("__dlpack__")();
  auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  const dlpack::Tensor& tensor = managed->tensor;
  const char kind = tensor.dtype.code == dlpack::kInt      ? 'i'
                    : tensor.dtype.code == dlpack::kUInt   ? 'u'
                    : tensor.dtype.code == dlpack::kFloat  ? 'f'
                    : tensor.dtype.code == dlpack::kBFloat ? 'b'
                                                           : '?';
  set_type(a, tensor.dtype.lanes == 1 ? kind : '?', tensor.dtype.bits / 8u);
  a.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (tensor.strides)
    a.strides.assign(tensor.strides, tensor.strides + tensor.ndim);
  else
    a.strides = packed_strides(a.shape);
  a.device = device ? tensor.device.id : -1;
  a.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  a.owner = capsule;  // never taken over: the capsule gives the tensor back itself
}

void from_interface(Array& a, const py::object& object) {
  const py::dict found = object.attr("__cuda_array_interface__");
  const auto type = found["typestr"].cast<std::string>();  // such as "<f4"
  if (type.size() < 3 || (type[0] == '>' && type != ">u1"))
    fail(a.name + ": cannot read elements of type " + type);
  const auto bytes = static_cast<std::size_t>(std::stoul(type.substr(2)));
  set_type(a, type[1] == 'b' ? '?' : type[1], bytes);
  a.shape = found["shape"].cast<std::vector<std::int64_t>>();
  const py::object strides =
      found.contains("strides") ? py::object(found["strides"]) : py::object(py::none());
  if (strides.is_none())
    a.strides = packed_strides(a.shape);
  else
    set_strides(a, strides.cast<std::vector<std::int64_t>>(), static_cast<std::int64_t>(bytes));
  const auto [address, read_only] = found["data"].cast<std::pair<std::uintptr_t, bool>>();
  a.data = reinterpret_cast<void*>(address);
  a.read_only = read_only;
  a.device = device_of(a.data);
  a.owner = object;
}

}  // namespace

std::int64_t Array::size() const {
  std::int64_t n = 1;
  for (std::int64_t length : shape) n *= length;
  return n;
}

bool Array::packed() const {
  std::int64_t step = 1;
  for (std::size_t k = shape.size(); k-- > 0;) {
    if (shape[k] == 0) return true;
    if (shape[k] != 1 && strides[k] != step) return false;
    step *= shape[k];
  }
  return true;
}

std::string Array::described() const { return dtype_name + " " + text_of(shape); }

const Array& Array::of(std::initializer_list<DType> dtypes, const char* expected) const {
  if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end())
    fail(name + " is " + described() + ": expected " + expected);
  return *this;
}

const Array& Array::shaped(std::initializer_list<std::int64_t> lengths,
                           const char* expected) const {
  const bool fits = lengths.size() == shape.size() &&
                    std::equal(lengths.begin(), lengths.end(), shape.begin(),
                               [](std::int64_t a, std::int64_t b) { return a < 0 || a == b; });
  if (!fits) fail(name + " is " + described() + ": expected " + expected);
  return *this;
}

const Array& Array::contiguous() const {
  if (!packed()) fail(name + " is not contiguous");
  return *this;
}

const Array& Array::writable() const {
  if (read_only) fail(name + " is read-only");
  return *this;
}

Array array(const py::object& object, const char* name, Place place) {
  Array a;
  a.name = name;
  if (PyObject_CheckBuffer(object.ptr()))
    from_buffer(a, object);
  else if (py::hasattr(object, "__dlpack__"))
    from_dlpack(a, object);
  else if (py::hasattr(object, "__cuda_array_interface__"))
    from_interface(a, object);
  else
    fail(a.name + " is no array: expected DLPack, __cuda_array_interface__ or a buffer");
  if (a.device >= 0 && (kEmulated || place == Place::kHost))
    fail(a.name + " lies on a device: expected host memory");
  if (a.device < 0 && place == Place::kDevice && a.size() > 0) {
    void* seen = device_address(a.data);
    if (!seen) fail(a.name + " lies in pageable host memory: expected device or pinned memory");
    a.data = seen;
  }
  return a;
}

Real real_type(const Array& out) {
  out.of({DType::kFloat32, DType::kFloat16, DType::kBFloat16}, "float32, float16 or bfloat16");
  return out.dtype == DType::kFloat32   ? Real::kFloat32
         : out.dtype == DType::kFloat16 ? Real::kFloat16
                                        : Real::kBFloat16;
}

int common_device(std::initializer_list<const Array*> arrays) {
  const Array* first = nullptr;
  for (const Array* a : arrays) {
    if (a->device < 0) continue;
    if (first && first->device != a->device)
      fail(a->name + " lies on device " + std::to_string(a->device) + ", but " + first->name +
           " on device " + std::to_string(first->device));
    first = first ? first : a;
  }
  return first ? first->device : 0;
}

}  // namespace lipsync::cuda
