// SPDX-License-Identifier: Apache-2.0
// A ring whose memory somebody else has written: header, cursors and records are any bytes. Whoever
// attaches gets records that lie within the ring, or Corrupt; never anything outside of it.
#include "../ring.hpp"
#include "input.hpp"

namespace {

using namespace lipsync::ring;
using lipsync::fuzz::expect;
using lipsync::fuzz::Input;
constexpr std::uint64_t kGeneration = 7;
constexpr std::size_t kCapacity = 4096;

void use(int fd, Input& input) {
  const auto map = std::make_shared<const Mapping>(Mapping::attach(fd, kGeneration));
  Header& header = map->header();
  Reader reader(map);
  Writer writer(map);
  unsigned sum = 0;
  for (int step = 0; step < 200 && input.left() > 0; step++) {
    switch (input.between(0, 6)) {
      case 0:
        if (const auto record = reader.next())
          for (const std::byte b : *record) sum += static_cast<unsigned>(b);
        break;
      case 1:
        if (reader.held() > 0) reader.release();
        break;
      case 2: {
        const std::size_t size = input.number<std::uint16_t>() % writer.largest();
        if (const auto room = writer.try_reserve(size)) {
          input.read(room->data(), room->size());
          writer.commit(size);
        }
        break;
      }
      case 3:
        header.head.store(input.number<std::uint64_t>());
        break;
      case 4:
        header.tail.store(input.number<std::uint64_t>());
        break;
      case 5: {  // the other process scribbles
        const std::size_t at = input.number<std::uint16_t>() % kCapacity;
        input.read(map->at(at), std::min<std::size_t>(16, kCapacity - at));
        break;
      }
      default:
        reader.want_data();
        writer.want_space(1);
        sum += static_cast<unsigned>(writer.room() + writer.backlog());
    }
    expect(writer.room() <= kCapacity, "there is no more room than the ring");
  }
  volatile unsigned seen = sum;
  (void)seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const int fd = ::memfd_create("ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  expect(fd >= 0, "a memfd can be had");
  try {
    const bool foreign = input.between(0, 3) == 0;
    if (foreign) {  // not made by us at all
      expect(::ftruncate(fd, static_cast<off_t>(kHeader + kCapacity)) == 0, "it has a size");
      expect(::fcntl(fd, F_ADD_SEALS, kSeals) == 0, "it is sealed");
      const auto head = input.bytes(192);
      expect(::pwrite(fd, head.data(), head.size(), 0) == 192, "it is written");
    } else {
      Mapping::create(fd, kCapacity, kGeneration);
    }
    use(fd, input);
  } catch (const Corrupt&) {
  }
  ::close(fd);
  return 0;
}
