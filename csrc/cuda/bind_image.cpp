// SPDX-License-Identifier: Apache-2.0
// Bindings of the image kernels: check, release the GIL, call. Tables of jobs are read before the
// call returns; what they point to must live until the stream has passed it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/array.hpp"
#include "cuda/bind.hpp"
#include "cuda/images.hpp"
#include "cuda/kernels.hpp"

namespace py = pybind11;

namespace lipsync::cuda {

namespace {

constexpr std::int64_t kSide = 32767;  // the longest of a picture
constexpr std::int64_t kJpegSide = 65500;

[[noreturn]] void fail(const std::string& what) { throw py::value_error(what); }

// A table of int64 in host memory, a row for each job.
class Table {
 public:
  Table(const py::object& object, const char* name, std::int64_t fields, const char* shape)
      : array_(array(object, name, Place::kHost)), fields_(fields) {
    array_.of({DType::kInt64}, "int64").shaped({-1, fields}, shape).contiguous();
  }
  std::int64_t count() const { return array_.shape[0]; }
  const std::int64_t* row(std::int64_t k) const {
    return array_.as<const std::int64_t>() + k * fields_;
  }
  [[noreturn]] void refuse(std::int64_t k, const char* why) const {
    fail(array_.name + ", row " + std::to_string(k) + ": " + why);
  }

 private:
  Array array_;
  std::int64_t fields_;
};

template <class T>
T* pointer(std::int64_t value) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(value));
}

bool within(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value >= low && value <= high;
}

int device_at(const void* address) { return std::max(0, device_of(const_cast<void*>(address))); }

void region_input_of(const py::object& crops, int border, const py::object& out, Stream stream,
                     bool half) {
  const Array from = array(crops, "crops", Place::kHost), to = array(out, "out");
  from.of({DType::kInt64}, "int64").shaped({-1}, "one dimension").contiguous();
  const std::int64_t count = from.shape[0];
  const std::int64_t r = to.ndim() == 4 ? to.shape[3] : -1;
  to.shaped({count, 6, r, r}, "crops x 6 x R x R").writable();
  if (!within(r, 16, kSide) || !within(border, 0, kSide))
    fail("region of " + std::to_string(r) + " and border " + std::to_string(border) +
         ": expected 16 or more, and 0 or more");
  RegionInput::Args how{};
  how.type = real_type(to);
  how.region = static_cast<int>(r);
  how.border = border;
  how.half = half;
  how.out = to.as<void>();
  how.picture = to.strides[0], how.channel = to.strides[1];
  how.row = to.strides[2], how.column = to.strides[3];
  std::vector<const std::uint8_t*> pictures;
  for (std::int64_t k = 0; k < count; k++) {
    if (from.as<std::int64_t>()[k] == 0)
      fail("crops, number " + std::to_string(k) + ": no address");
    pictures.push_back(pointer<const std::uint8_t>(from.as<std::int64_t>()[k]));
  }
  const int device = common_device({&to});
  py::gil_scoped_release release;
  const OnDevice here(device);
  region_input(pictures, how, stream);
}

void place_region(const Table& table, std::int64_t k, ComposeJob& job) {
  const std::int64_t* f = table.row(k);
  constexpr std::int64_t far = 1 << 30;
  if (f[0] == 0 || !within(f[1], 0, 2)) table.refuse(k, "planes: no address, or type not 0 to 2");
  for (int i = 2; i < 5; i++)
    if (!within(f[i], -far, far)) table.refuse(k, "stride out of range");
  if (!within(f[5], 1, kSide) || !within(f[6], 1, kSide) || !within(f[10], 1, kSide) ||
      !within(f[7], 0, f[10] - f[6]) || !within(f[8], 0, f[10] - f[5]))
    table.refuse(k, "the region does not lie within the crop");
  const auto bits = static_cast<std::uint32_t>(f[11]);
  std::memcpy(&job.share, &bits, sizeof job.share);
  if (!(job.share >= 0.0f && job.share <= 1.0f)) table.refuse(k, "share: expected 0 to 1");
  job.planes = pointer<const void>(f[0]);
  job.type = static_cast<Real>(f[1]);
  job.channel = static_cast<std::int32_t>(f[2]);
  job.row = static_cast<std::int32_t>(f[3]);
  job.column = static_cast<std::int32_t>(f[4]);
  job.height = static_cast<int>(f[5]), job.width = static_cast<int>(f[6]);
  job.left = static_cast<int>(f[7]), job.top = static_cast<int>(f[8]);
  job.crop = pointer<const std::uint8_t>(f[9]);
  job.side = static_cast<int>(f[10]);
}

void place_part(const Table& table, std::int64_t k, ComposeJob& job) {
  const std::int64_t* f = table.row(k);
  if (!within(f[13], 1, kSide) || !within(f[14], 1, kSide))
    table.refuse(k, "part: its sides must be 1 to 32767");
  if (f[18] == 0) table.refuse(k, "out: no address");
  job.part_width = static_cast<int>(f[13]), job.part_height = static_cast<int>(f[14]);
  job.out = pointer<std::uint8_t>(f[18]);
  if (f[9] == 0 && !(f[19] == 2 && job.share == 1.0f)) table.refuse(k, "crop: no address");
  if (f[19] == 0 || f[19] == 3) {
    job.resize = true;
    job.linear = f[19] == 3;
    job.x = static_cast<std::int32_t>(f[15]), job.y = static_cast<std::int32_t>(f[15] >> 32);
    job.wide = static_cast<std::int32_t>(f[16]), job.high = static_cast<std::int32_t>(f[16] >> 32);
    if (job.wide < 1 || job.high < 1 || !within(job.x, 0, f[13] - job.wide) ||
        !within(job.y, 0, f[14] - job.high))
      table.refuse(k, "the rectangle does not lie within the part");
    job.pixels = pointer<const std::uint8_t>(f[12]);
    job.keep = pointer<const std::uint8_t>(f[17]);
    if (!job.pixels && (job.keep || job.wide != f[13] || job.high != f[14]))
      table.refuse(k, "without pixels the rectangle must be all of the part");
    job.across = lipsync::detail::scale_of(job.side, job.wide, job.linear);
    job.down = lipsync::detail::scale_of(job.side, job.high, job.linear);
  } else if (f[19] == 1) {
    job.x = job.y = static_cast<int>((job.side - f[13]) / 2);
    if (f[13] != f[14] || f[13] > job.side || (job.side - f[13]) % 2 != 0)
      table.refuse(k, "the square is the crop's size less its border");
  } else if (f[19] == 2) {
    job.x = job.left, job.y = job.top;
    if (f[13] != job.width || f[14] != job.height)
      table.refuse(k, "the part is not of the region's size");
  } else {
    table.refuse(k, "mode: expected 0 to 3");
  }
}

void compose_jobs(const py::object& jobs, Stream stream) {
  const Table table(jobs, "jobs", 20, "jobs x 20");
  std::vector<ComposeJob> made(static_cast<std::size_t>(table.count()));
  for (std::int64_t k = 0; k < table.count(); k++) {
    place_region(table, k, made[static_cast<std::size_t>(k)]);
    place_part(table, k, made[static_cast<std::size_t>(k)]);
  }
  if (made.empty()) return;
  py::gil_scoped_release release;
  const OnDevice here(device_at(made[0].out));
  compose(made, stream);
}

// A row of the table of pictures; `coded` is where their segments go.
jpeg::Picture picture_at(const Table& table, std::int64_t k, const Array& coded,
                         const Array& sizes) {
  const std::int64_t* f = table.row(k);
  jpeg::Picture p{};
  if (f[0] == 0) table.refuse(k, "pixels: no address");
  if (!within(f[2], 1, kJpegSide) || !within(f[3], 1, kJpegSide))
    table.refuse(k, "sides must be 1 to 65500");
  if (!within(f[1], 3 * f[2], std::int64_t{1} << 40))
    table.refuse(k, "stride: expected the bytes of a row or more");
  if (!within(f[4], 1, 65535)) table.refuse(k, "restart interval: expected 1 to 65535");
  p.pixels = pointer<const std::uint8_t>(f[0]);
  p.stride = f[1];
  p.width = static_cast<int>(f[2]), p.height = static_cast<int>(f[3]);
  p.interval = static_cast<int>(f[4]);
  p.across = (p.width + jpeg::kUnit - 1) / jpeg::kUnit;
  p.units = p.across * ((p.height + jpeg::kUnit - 1) / jpeg::kUnit);
  p.slot = jpeg::slot_bytes(std::min(p.interval, p.units));
  const std::int64_t count = jpeg::segments_of(p);
  if (!within(f[5], 0, sizes.size() - count)) table.refuse(k, "its segments lie beyond sizes");
  if (!within(f[7], 0, coded.size() - count * p.slot))
    table.refuse(k, "its segments lie beyond out");
  p.segment = static_cast<int>(f[5]);
  p.table = static_cast<int>(f[6]);
  p.out = coded.as<std::uint8_t>() + f[7];
  return p;
}

constexpr const char* kPictures = "pictures x 8";

void jpeg_encode(const py::object& pictures, const py::object& tables, const py::object& out,
                 const py::object& sizes, Stream stream) {
  const Table table(pictures, "pictures", 8, kPictures);
  const Array steps = array(tables, "tables"), to = array(out, "out"), all = array(sizes, "sizes");
  steps.of({DType::kUInt16}, "uint16").shaped({-1, 2, 64}, "tables x 2 x 64").contiguous();
  to.of({DType::kUInt8}, "uint8").shaped({-1}, "one dimension").contiguous().writable();
  all.of({DType::kInt32}, "int32").shaped({-1}, "one dimension").contiguous().writable();
  std::vector<jpeg::Picture> made;
  for (std::int64_t k = 0; k < table.count(); k++) {
    if (!within(table.row(k)[6], 0, steps.shape[0] - 1)) table.refuse(k, "there is no such table");
    made.push_back(picture_at(table, k, to, all));
  }
  const int device = common_device({&steps, &to, &all});
  py::gil_scoped_release release;
  const OnDevice here(device);
  encode(made, steps.as<std::uint16_t>(), all.as<std::int32_t>(), stream);
}

void jpeg_gather(const py::object& pictures, const py::object& out, const py::object& sizes,
                 const py::object& packed, const py::object& offsets, Stream stream) {
  const Table table(pictures, "pictures", 8, kPictures);
  const Array from = array(out, "out"), all = array(sizes, "sizes"), to = array(packed, "packed"),
              starts = array(offsets, "offsets");
  from.of({DType::kUInt8}, "uint8").shaped({-1}, "one dimension").contiguous();
  all.of({DType::kInt32}, "int32").shaped({-1}, "one dimension").contiguous();
  to.of({DType::kUInt8}, "uint8").shaped({-1}, "one dimension").contiguous().writable();
  starts.of({DType::kInt32}, "int32").shaped({-1}, "one dimension").contiguous().writable();
  if (table.count() > jpeg::kGathered)
    fail("pictures: " + std::to_string(table.count()) + ", expected " +
         std::to_string(jpeg::kGathered) + " at most");
  if (reinterpret_cast<std::uintptr_t>(to.data) % 16)
    fail("packed: its address is no multiple of 16");
  jpeg::GatherArgs how{};
  std::vector<jpeg::Segments> made;
  for (std::int64_t k = 0; k < table.count(); k++) {
    const jpeg::Picture p = picture_at(table, k, from, all);
    const int count = jpeg::segments_of(p);
    made.push_back({p.segment, how.total, p.slot, p.out});
    how.total += count;
  }
  if (starts.size() < how.total + 1)
    fail("offsets is " + starts.described() + ": expected " + std::to_string(how.total + 1) +
         " or more");
  how.sizes = all.as<std::int32_t>();
  how.offsets = starts.as<std::int32_t>();
  how.packed = to.as<std::uint8_t>();
  how.capacity = to.size();
  const int device = common_device({&from, &all, &to, &starts});
  py::gil_scoped_release release;
  const OnDevice here(device);
  gather(made, how, stream);
}

std::int64_t slot_bytes(std::int64_t units) {
  if (!within(units, 1, 1 << 24)) fail("units: expected 1 to 2^24");
  return jpeg::slot_bytes(units);
}

py::array_t<std::uint16_t> tables_of(int quality) {
  if (!within(quality, 1, 100)) fail("quality: expected 1 to 100");
  std::uint16_t made[2][64];
  jpeg::quant_tables(quality, made);
  py::array_t<std::uint16_t> out({py::ssize_t{2}, py::ssize_t{64}});
  std::memcpy(out.mutable_data(), made, sizeof made);
  return out;
}

}  // namespace

void bind_image(py::module_& m) {
  const auto stream = [] { return py::arg("stream") = Stream{0}; };
  m.def("region_input", &region_input_of, py::arg("crops"), py::arg("border"), py::arg("out"),
        stream(), py::arg("half") = false,
        "Crops (int64 addresses) to the network's input N x 6 x R x R; see _native.region_input.");
  m.def("compose", &compose_jobs, py::arg("jobs"), stream(),
        "Pictures of the network's output, as a table of jobs x 20 int64 says.");
  m.def("jpeg", &jpeg_encode, py::arg("pictures"), py::arg("tables"), py::arg("out"),
        py::arg("sizes"), stream(), "The coded bytes of each restart segment, each in its slot.");
  m.def("jpeg_gather", &jpeg_gather, py::arg("pictures"), py::arg("out"), py::arg("sizes"),
        py::arg("packed"), py::arg("offsets"), stream(),
        "Coded segments one behind the other, in the order of the pictures.");
  m.def("jpeg_slot_bytes", &slot_bytes, py::arg("units"),
        "Bytes of a slot that hold any segment of so many units.");
  m.def("quant_tables", &tables_of, py::arg("quality"), "uint16 2 x 64 in natural order.");
}

}  // namespace lipsync::cuda
