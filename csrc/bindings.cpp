// SPDX-License-Identifier: Apache-2.0
// Python bindings of the native hot path: check shapes, release the GIL, call. No logic here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "image.hpp"
#include "mapped.hpp"
#include "mel.hpp"
#include "ring.hpp"
#include "up_stage.hpp"

namespace py = pybind11;

namespace {

using F32 = py::array_t<float, py::array::c_style>;
using U8 = py::array_t<std::uint8_t, py::array::c_style>;

[[noreturn]] void fail(const std::string& what) { throw py::value_error(what); }

std::string shape_of(const py::array& a) { return py::str(a.attr("shape")).cast<std::string>(); }

// A picture whose pixels are packed; its rows may lie further apart (a crop of a larger one).
struct Picture {
  py::array_t<std::uint8_t> array;
  Picture(py::array_t<std::uint8_t> a, const char* name) : array(std::move(a)) {
    if (array.ndim() != 3 || array.shape(2) != 3)
      fail(std::string(name) + " has shape " + shape_of(array) + ": expected height x width x 3");
    if (array.shape(0) < 1 || array.shape(1) < 1 || array.shape(0) > 32767 ||
        array.shape(1) > 32767)
      fail(std::string(name) + " has shape " + shape_of(array) + ": sides must be 1 to 32767");
    if (array.strides(2) != 1 || array.strides(1) != 3)
      fail(std::string(name) + ": pixels must be packed");
  }
  lipsync::View view() const {
    return {.data = array.data(),
            .height = static_cast<int>(array.shape(0)),
            .width = static_cast<int>(array.shape(1)),
            .stride = static_cast<std::ptrdiff_t>(array.strides(0))};
  }
};

// Bytes of their own, from a file that is mapped.
py::bytes mapped_bytes(const py::buffer& view) {
  const auto info = view.request();
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) fail("the view has gaps");
  const auto size = static_cast<std::size_t>(info.size * info.itemsize);
  auto out = py::reinterpret_steal<py::bytes>(
      PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(size)));
  if (!out) throw py::error_already_set();
  const int error =
      lipsync::copy_mapped(static_cast<const std::byte*>(info.ptr), size,
                           reinterpret_cast<std::byte*>(PyBytes_AS_STRING(out.ptr())));
  if (error != 0) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
  return out;
}

U8 new_picture(py::ssize_t height, py::ssize_t width) {
  return U8({height, width, py::ssize_t{3}});
}

template <int Flags>
lipsync::MutableView mutable_view(py::array_t<std::uint8_t, Flags>& a) {
  return {.data = a.mutable_data(),
          .height = static_cast<int>(a.shape(0)),
          .width = static_cast<int>(a.shape(1)),
          .stride = static_cast<std::ptrdiff_t>(a.strides(0))};
}

U8 resized(py::array_t<std::uint8_t> source, int height, int width, bool linear) {
  const Picture src(std::move(source), "source");
  if (height < 1 || width < 1 || height > 32767 || width > 32767)
    fail("size " + std::to_string(height) + " x " + std::to_string(width) +
         ": sides must be 1 to 32767");
  U8 out = new_picture(height, width);
  const auto from = src.view();
  const auto to = mutable_view(out);
  py::gil_scoped_release release;
  lipsync::resize(from, to, linear);
  return out;
}

F32 region_input(py::array_t<std::uint8_t> crop, int border, bool half) {
  const Picture src(std::move(crop), "crop");
  const auto v = src.view();
  if (v.height != v.width || border < 0 || v.width - 2 * border < 16)
    fail("crop has shape " + shape_of(src.array) + " and border " + std::to_string(border) +
         ": expected a square of at least 16 pixels inside the border");
  const py::ssize_t r = v.width - 2 * border;
  F32 out({py::ssize_t{6}, r, r});
  float* data = out.mutable_data();
  py::gil_scoped_release release;
  lipsync::region_input(v, border, half, data);
  return out;
}

U8 region_output(F32 planes) {
  if (planes.ndim() != 3 || planes.shape(0) != 3 || planes.shape(1) < 1 || planes.shape(2) < 1 ||
      planes.shape(1) > 32767 || planes.shape(2) > 32767)
    fail("planes have shape " + shape_of(planes) + ": expected 3 x height x width");
  const auto plane = static_cast<std::size_t>(planes.shape(1) * planes.shape(2));
  U8 out = new_picture(planes.shape(1), planes.shape(2));
  const float* in = planes.data();
  std::uint8_t* data = out.mutable_data();
  py::gil_scoped_release release;
  lipsync::region_output(in, plane, data);
  return out;
}

void compose(py::array_t<std::uint8_t> crop, py::array_t<std::uint8_t> region,
             std::array<int, 2> corner, py::array_t<std::uint8_t> frame, std::array<int, 4> rect,
             std::optional<py::array_t<std::uint8_t, py::array::c_style>> keep, bool linear) {
  const auto [left, top] = corner;
  const auto [x1, y1, x2, y2] = rect;
  const Picture c(std::move(crop), "crop"), r(std::move(region), "region");
  Picture f(std::move(frame), "frame");
  const auto cv = c.view(), rv = r.view();
  if (cv.height != cv.width) fail("crop has shape " + shape_of(c.array) + ": expected a square");
  if (left < 0 || top < 0 || left > cv.width - rv.width || top > cv.height - rv.height)
    fail("region " + shape_of(r.array) + " at " + std::to_string(left) + "," + std::to_string(top) +
         " does not lie within the crop " + shape_of(c.array));
  if (!f.array.writeable()) fail("frame is read-only");
  if (x1 < 0 || y1 < 0 || x2 <= x1 || y2 <= y1 || x2 > f.array.shape(1) || y2 > f.array.shape(0))
    fail("rectangle " + std::to_string(x1) + "," + std::to_string(y1) + "," + std::to_string(x2) +
         "," + std::to_string(y2) + " does not lie within the frame " + shape_of(f.array));
  if (keep && (keep->ndim() != 2 || keep->shape(0) != y2 - y1 || keep->shape(1) != x2 - x1))
    fail("keep has shape " + shape_of(*keep) + ": expected the rectangle's height x width");
  const auto target = mutable_view(f.array);
  const std::uint8_t* mask = keep ? keep->data() : nullptr;
  py::gil_scoped_release release;
  lipsync::compose(cv, rv, left, top, target, x1, y1, x2 - x1, y2 - y1, mask, linear);
}

F32 mel_rows_at(F32 pcm, std::int64_t start, std::int64_t first, std::int64_t count) {
  using lipsync::mel::kFft, lipsync::mel::kHop;
  if (pcm.ndim() != 1) fail("pcm has shape " + shape_of(pcm) + ": expected one dimension");
  constexpr std::int64_t far = std::int64_t{1} << 50;
  if (start < 0 || start > far || first < 0 || first > far || count < 1 || count > 4096)
    fail("start " + std::to_string(start) + ", first " + std::to_string(first) + ", count " +
         std::to_string(count) + ": expected 0 or more, 0 or more, 1 to 4096");
  const std::int64_t needed = std::max<std::int64_t>(0, first * kHop - kFft / 2 - 1);
  if (start > needed)
    fail("pcm begins at sample " + std::to_string(start) + ": row " + std::to_string(first) +
         " needs those from " + std::to_string(needed) + " on");
  F32 out({static_cast<py::ssize_t>(count), py::ssize_t{lipsync::mel::kBands}});
  const float* in = pcm.data();
  float* data = out.mutable_data();
  const std::int64_t n = pcm.shape(0);
  py::gil_scoped_release release;
  lipsync::mel_rows_at(in, n, start, first, static_cast<std::size_t>(count), data);
  return out;
}

// MelStream behind a lock, so that two Python threads cannot tear it.
class PyMelStream {
 public:
  F32 push(F32 pcm) {
    if (pcm.ndim() != 1) fail("pcm has shape " + shape_of(pcm) + ": expected one dimension");
    const float* in = pcm.data();
    const auto n = static_cast<std::size_t>(pcm.shape(0));
    return locked([&] { return stream_.rows_after(n); },
                  [&](float* out) { stream_.push(in, n, out); });
  }
  F32 finish() {
    return locked([&] { return stream_.rows_at_finish(); },
                  [&](float* out) { stream_.finish(out); });
  }
  std::int64_t samples() const { return stream_.samples(); }
  std::int64_t rows() const { return stream_.rows(); }

 private:
  template <class Count, class Fill>
  F32 locked(Count count, Fill fill) {
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    {
      py::gil_scoped_release release;
      lock.lock();
    }
    F32 out({static_cast<py::ssize_t>(count()), py::ssize_t{lipsync::mel::kBands}});
    float* data = out.mutable_data();
    py::gil_scoped_release release;
    fill(data);
    lock.unlock();
    return out;
  }

  std::mutex mutex_;
  lipsync::MelStream stream_;
};

// An upsampling stage of the decoder; see up_stage.hpp.
class PyUpStage {
 public:
  PyUpStage(const std::string& kernel, const std::map<std::string, F32>& weights, int height,
            int width, std::array<int, 4> part)
      : stage_(find(kernel), describe(weights, height, width, part)) {}

  F32 planes(F32 low, F32 skip) const {
    check(low, skip);
    const auto& p = stage_.plan();
    F32 out({py::ssize_t{p.outputs}, py::ssize_t{p.rows}, py::ssize_t{p.columns}});
    run(low, skip, out.mutable_data(), nullptr);
    return out;
  }
  U8 pixels(F32 low, F32 skip) const {
    check(low, skip);
    if (!stage_.plan().picture) fail("this stage makes features, no picture");
    U8 out = new_picture(stage_.plan().rows, stage_.plan().columns);
    run(low, skip, nullptr, out.mutable_data());
    return out;
  }
  std::array<int, 3> skip_shape() const {
    return {stage_.plan().skip, stage_.plan().skip_rows, stage_.plan().skip_columns};
  }
  std::string kernel() const { return stage_.kernel().name; }

 private:
  static const lipsync::up::Kernel& find(const std::string& name) {
    for (const auto* kernel : lipsync::up::kernels())
      if (name == kernel->name) return *kernel;
    fail("kernel " + name + " cannot run on this processor");
  }
  static lipsync::up::Description describe(const std::map<std::string, F32>& weights, int height,
                                           int width, std::array<int, 4> part) {
    const auto of = [&](const char* name) -> lipsync::up::Weights {
      const auto found = weights.find(name);
      if (found == weights.end() || found->second.ndim() < 1 || found->second.size() < 1)
        return {.data = nullptr, .outputs = 0, .inputs = 0};
      const auto outputs = static_cast<std::size_t>(found->second.shape(0));
      return {.data = found->second.data(),
              .outputs = outputs,
              .inputs = static_cast<std::size_t>(found->second.size()) / outputs};
    };
    return {.expand_low = of("expand_low"),
            .expand_high = of("expand_high"),
            .expand_bias = of("expand_bias"),
            .depthwise = of("depthwise"),
            .depthwise_bias = of("depthwise_bias"),
            .project = of("project"),
            .project_bias = of("project_bias"),
            .expand2 = of("expand2"),
            .expand2_bias = of("expand2_bias"),
            .depthwise2 = of("depthwise2"),
            .depthwise2_bias = of("depthwise2_bias"),
            .project2 = of("project2"),
            .project2_bias = of("project2_bias"),
            .picture = of("picture"),
            .picture_bias = of("picture_bias"),
            .height = height,
            .width = width,
            .x = part[0],
            .y = part[1],
            .columns = part[2],
            .rows = part[3]};
  }
  void check(const F32& low, const F32& skip) const {
    const auto& p = stage_.plan();
    const auto need = [](const F32& a, int c, int h, int w, const char* name) {
      if (a.ndim() != 3 || a.shape(0) != c || a.shape(1) != h || a.shape(2) != w)
        fail(std::string(name) + " has shape " + shape_of(a) + ": expected " + std::to_string(c) +
             " x " + std::to_string(h) + " x " + std::to_string(w));
    };
    need(low, p.low, p.height / 2, p.width / 2, "low");
    need(skip, p.skip, p.skip_rows, p.skip_columns, "skip");
  }
  void run(const F32& low, const F32& skip, float* planes, std::uint8_t* pixels) const {
    const float *a = low.data(), *b = skip.data();
    py::gil_scoped_release release;
    stage_.run(a, b, planes, pixels);
  }

  lipsync::up::Stage stage_;
};

// Ring memory that somebody looks at; keeps the mapping alive. (Not a NumPy array: a process that
// only passes records on has no need to import NumPy.)
struct RingBytes {
  std::shared_ptr<const lipsync::ring::Mapping> map;
  const std::byte* data;
  std::size_t size;
  bool readonly;
  py::buffer_info buffer() const {
    return {const_cast<std::byte*>(data), 1, "B", static_cast<py::ssize_t>(size), readonly};
  }
};

py::memoryview ring_view(const std::shared_ptr<const lipsync::ring::Mapping>& map,
                         const std::byte* data, std::size_t size, bool readonly) {
  return py::memoryview(
      py::cast(RingBytes{.map = map, .data = data, .size = size, .readonly = readonly}));
}

template <class Side>
class PyRing {
 public:
  PyRing(int fd, std::uint64_t generation)
      : map_(std::make_shared<const lipsync::ring::Mapping>(
            lipsync::ring::Mapping::attach(fd, generation))),
        side_(map_) {}
  Side& side() { return side_; }
  std::size_t capacity() const { return map_->capacity(); }
  std::optional<py::memoryview> try_reserve(std::size_t size) {
    const auto room = side_.try_reserve(size);
    if (!room) return std::nullopt;
    return ring_view(map_, room->data(), room->size(), false);
  }
  std::optional<py::memoryview> next() {
    const auto record = side_.next();
    if (!record) return std::nullopt;
    return ring_view(map_, record->data(), record->size(), true);
  }

 private:
  std::shared_ptr<const lipsync::ring::Mapping> map_;
  Side side_;
};

using PyRingWriter = PyRing<lipsync::ring::Writer>;
using PyRingReader = PyRing<lipsync::ring::Reader>;

void bind_ring(py::module_& m) {
  using lipsync::ring::Mapping;
  py::class_<RingBytes>(m, "RingBytes", py::buffer_protocol()).def_buffer(&RingBytes::buffer);
  py::register_exception<lipsync::ring::Corrupt>(m, "RingCorruptError", PyExc_RuntimeError);
  m.def(
      "ring_create",
      [](int fd, std::size_t capacity, std::uint64_t generation) {
        Mapping::create(fd, capacity, generation);
      },
      py::arg("fd"), py::arg("capacity"), py::arg("generation"),
      // The kernel zeroes the memory here: a millisecond for each MB.
      py::call_guard<py::gil_scoped_release>(),
      "Make an empty memfd a ring of `capacity` bytes (a power of two, 4096 to 2^30).");
  py::class_<PyRingWriter>(m, "RingWriter", "The writing side of a ring; see csrc/ring.hpp.")
      .def(py::init<int, std::uint64_t>(), py::arg("fd"), py::arg("generation"))
      .def("try_reserve", &PyRingWriter::try_reserve, py::arg("size"),
           "A writable view of `size` bytes, or None when they do not fit now.")
      .def(
          "commit", [](PyRingWriter& w, std::size_t size) { return w.side().commit(size); },
          py::arg("size"), "Make the reserved bytes a record; True when the reader sleeps.")
      .def(
          "want_space", [](PyRingWriter& w, std::size_t size) { return w.side().want_space(size); },
          py::arg("size"), "Ask to be woken; False when `size` bytes fit already.")
      .def(
          "room", [](PyRingWriter& w) { return w.side().room(); }, "Payload bytes that fit now.")
      .def(
          "backlog", [](PyRingWriter& w) { return w.side().backlog(); },
          "Bytes committed and not yet released.")
      .def_property_readonly(
          "position", [](PyRingWriter& w) { return w.side().position(); }, "Bytes ever committed.")
      .def_property_readonly(
          "largest", [](PyRingWriter& w) { return w.side().largest(); },
          "The largest payload that ever fits.")
      .def_property_readonly("capacity", &PyRingWriter::capacity, "Bytes of data.");
  py::class_<PyRingReader>(m, "RingReader", "The reading side of a ring; see csrc/ring.hpp.")
      .def(py::init<int, std::uint64_t>(), py::arg("fd"), py::arg("generation"))
      .def("next", &PyRingReader::next,
           "A read-only view of the next record, or None when there is none now.")
      .def(
          "release", [](PyRingReader& r) { return r.side().release(); },
          "Give the oldest held record back; True when the writer sleeps.")
      .def(
          "want_data", [](PyRingReader& r) { return r.side().want_data(); },
          "Ask to be woken; False when a record is there already.")
      .def_property_readonly(
          "held", [](PyRingReader& r) { return r.side().held(); },
          "Records read and not yet released.")
      .def_property_readonly(
          "position", [](PyRingReader& r) { return r.side().position(); }, "Bytes ever released.")
      .def_property_readonly("capacity", &PyRingReader::capacity, "Bytes of data.");
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native hot path of lipsync_fast; see csrc/.";
  py::class_<PyMelStream>(m, "MelStream",
                          "Mel rows (80 float32 in [-4, 4], every 12.5 ms) of a 16 kHz stream.")
      .def(py::init<>())
      .def("push", &PyMelStream::push, py::arg("pcm").noconvert(),
           "Consume float32 samples (any number); return the rows that are complete, n x 80.")
      .def("finish", &PyMelStream::finish,
           "End the stream; return the remaining rows, so that there are 1 + samples // 200.")
      .def_property_readonly("samples", &PyMelStream::samples, "Samples consumed so far.")
      .def_property_readonly("rows", &PyMelStream::rows, "Rows returned so far.");
  bind_ring(m);
  py::class_<PyUpStage>(m, "UpStage", "An upsampling stage of the decoder; see csrc/up_stage.hpp.")
      .def(py::init<const std::string&, const std::map<std::string, F32>&, int, int,
                    std::array<int, 4>>(),
           py::arg("kernel"), py::arg("weights"), py::arg("height"), py::arg("width"),
           py::arg("part"),
           "Pack weights (float32, outputs first) for a kernel; the stage makes `part` (x, y, "
           "width, height) of a map of height x width.")
      .def("planes", &PyUpStage::planes, py::arg("low").noconvert(), py::arg("skip").noconvert(),
           "The result as float32, channels first, from the map below, whole, and the part of the "
           "skip tensor that is needed: `part` and two pixels around it.")
      .def("pixels", &PyUpStage::pixels, py::arg("low").noconvert(), py::arg("skip").noconvert(),
           "The last stage's result as `region_output` makes pixels of it.")
      .def_property_readonly(
          "skip_shape", [](const PyUpStage& s) { return py::tuple(py::cast(s.skip_shape())); },
          "Channels, height and width of the skip tensor.")
      .def_property_readonly("kernel", &PyUpStage::kernel, "Its kernel's name.");
  m.def(
      "up_kernels",
      [] {
        std::vector<std::string> names;
        for (const auto* kernel : lipsync::up::kernels()) names.push_back(kernel->name);
        return names;
      },
      "Names of the kernels of UpStage that this processor can run, the fastest first.");
  m.def("mel_rows_at", &mel_rows_at, py::arg("pcm").noconvert(), py::arg("start"), py::arg("first"),
        py::arg("count"),
        "Mel rows first .. first + count - 1 of a stream, count x 80, from the part `pcm` of it "
        "that begins at sample `start`; the sound ends where `pcm` does.");
  m.def("mapped_bytes", &mapped_bytes, py::arg("view"),
        "A copy of a contiguous buffer in a mapped file; OSError (EFAULT) where the file has lost "
        "some of it, instead of the end of the process.");
  m.def(
      "resize_cubic",
      [](py::array_t<std::uint8_t> source, int height, int width) {
        return resized(std::move(source), height, width, false);
      },
      py::arg("source"), py::arg("height"), py::arg("width"),
      "Resize H x W x 3 uint8, bicubic as OpenCV's INTER_CUBIC (within one grey level).");
  m.def(
      "resize_linear",
      [](py::array_t<std::uint8_t> source, int height, int width) {
        return resized(std::move(source), height, width, true);
      },
      py::arg("source"), py::arg("height"), py::arg("width"),
      "Resize H x W x 3 uint8, bilinear: the bytes of OpenCV's INTER_LINEAR.");
  m.def(
      "region_input", &region_input, py::arg("crop"), py::arg("border"), py::arg("half") = false,
      "RGB crop S x S x 3 to the network's image input, 6 x R x R float32 BGR in 0..1: whole, then "
      "without the mouth; with `half`, without the lower half, then whole.");
  m.def("region_output", &region_output, py::arg("planes").noconvert(),
        "Network output 3 x H x W float32 BGR in 0..1 to H x W x 3 uint8 RGB, truncated.");
  m.def("compose", &compose, py::arg("crop"), py::arg("region"), py::arg("corner"),
        py::arg("frame").noconvert(), py::arg("rect"), py::arg("keep") = py::none(),
        py::arg("linear") = false,
        "Put `region` into `crop` at `corner` (left, top) and paste that into the rectangle `rect` "
        "(x1, y1, x2, y2) of `frame`, in place; pixels where `keep` (uint8, rectangle sized) is "
        "not 0 stay as they are. Resized bicubic, or with `linear` bilinear.");
}
