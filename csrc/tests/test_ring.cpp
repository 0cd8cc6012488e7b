// SPDX-License-Identifier: Apache-2.0
// The ring without Python: a writing and a reading thread, random sizes, both sides sleeping and
// waking; for the thread and address sanitizers. Argument: records to pass (default 200,000).
#include <poll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "../ring.hpp"

namespace {

using namespace lipsync::ring;

constexpr std::uint64_t kGeneration = 7;
int failures = 0;

void check(bool good, const char* what) {
  if (good) return;
  std::printf("FAILED: %s\n", what);
  failures++;
}

int new_segment(std::size_t capacity) {
  const int fd = ::memfd_create("ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  Mapping::create(fd, capacity, kGeneration);
  return fd;
}

using Shared = std::shared_ptr<const Mapping>;

Shared attached(int fd) {
  return std::make_shared<const Mapping>(Mapping::attach(fd, kGeneration));
}

void ring_bell(int bell) {
  const std::uint64_t one = 1;
  if (::write(bell, &one, sizeof one) != sizeof one) std::abort();
}

void wait_bell(int bell) {
  pollfd p{bell, POLLIN, 0};
  std::uint64_t count;
  if (::poll(&p, 1, 60'000) != 1 || ::read(bell, &count, sizeof count) != sizeof count) {
    std::printf("FAILED: nobody rang for a minute\n");
    std::exit(1);
  }
}

// Record n has a size and bytes that follow from n alone.
std::size_t size_of(std::uint64_t n) { return (n * 2654435761U >> 7) % 1500; }
std::byte byte_of(std::uint64_t n, std::size_t i) { return static_cast<std::byte>(n * 31 + i); }

void write_all(Shared map, int data_bell, int space_bell, std::uint64_t count) {
  Writer writer(map);
  for (std::uint64_t n = 0; n < count; n++) {
    const std::size_t size = size_of(n);
    auto room = writer.try_reserve(size);
    while (!room) {
      if (writer.want_space(size)) wait_bell(space_bell);
      room = writer.try_reserve(size);
    }
    for (std::size_t i = 0; i < size; i++) (*room)[i] = byte_of(n, i);
    if (writer.commit(size)) ring_bell(data_bell);
  }
}

void read_all(Shared map, int data_bell, int space_bell, std::uint64_t count) {
  Reader reader(map);
  std::mt19937 random(3);
  for (std::uint64_t n = 0; n < count;) {
    auto record = reader.next();
    if (!record) {
      while (reader.held() > 0)
        if (reader.release()) ring_bell(space_bell);
      if (reader.want_data()) wait_bell(data_bell);
      continue;
    }
    bool good = record->size() == size_of(n);
    for (std::size_t i = 0; good && i < record->size(); i++) good = (*record)[i] == byte_of(n, i);
    if (!good) {
      std::printf("FAILED: record %llu\n", static_cast<unsigned long long>(n));
      std::exit(1);
    }
    n++;
    if (reader.held() > random() % 3 && reader.release()) ring_bell(space_bell);
  }
}

void test_two_threads(std::uint64_t count) {
  const int fd = new_segment(4096);
  const int data_bell = ::eventfd(0, EFD_CLOEXEC), space_bell = ::eventfd(0, EFD_CLOEXEC);
  // One mapping for both: the thread sanitizer knows memory by its address.
  const Shared map = attached(fd);
  std::thread writer(write_all, map, data_bell, space_bell, count);
  std::thread reader(read_all, map, data_bell, space_bell, count);
  writer.join();
  reader.join();
  ::close(fd);
  ::close(data_bell);
  ::close(space_bell);
}

template <class Error, class Action>
bool throws(Action action) {
  try {
    action();
  } catch (const Error&) {
    return true;
  }
  return false;
}

void test_edges() {
  const int fd = new_segment(4096);
  Writer writer(attached(fd));
  Reader reader(attached(fd));
  check(!reader.next(), "an empty ring has no record");
  check(reader.want_data(), "an empty ring is waited for");
  check(throws<std::length_error>([&] { writer.try_reserve(writer.largest() + 1); }), "too large");
  check(writer.try_reserve(writer.largest()).has_value(), "the largest record fits");
  check(throws<std::logic_error>([&] { writer.commit(5000); }), "more than reserved");
  check(writer.try_reserve(writer.largest()).has_value(), "reserved anew");
  check(writer.commit(writer.largest()), "the sleeper is to be woken");
  check(!writer.try_reserve(0), "a full ring");
  check(writer.room() == 0, "no room");
  check(writer.want_space(0), "a full ring is waited for");
  check(reader.next()->size() == writer.largest(), "all of it");
  check(!writer.try_reserve(0), "held is not free");
  check(reader.release(), "the writer is to be woken");
  check(throws<std::logic_error>([&] { reader.release(); }), "nothing held");
  check(writer.try_reserve(0).has_value(), "an empty record fits");
  check(!writer.commit(0), "nobody sleeps");
  check(reader.next()->empty(), "an empty record is a record");
  check(throws<Corrupt>([&] { Mapping::attach(fd, kGeneration + 1); }), "other generation");
  ::close(fd);
}

void test_lies() {
  const int fd = new_segment(4096);
  {
    Mapping map = Mapping::attach(fd, kGeneration);
    Header& h = map.header();
    h.head.store(4096 + 8);
    check(throws<Corrupt>([&] { Mapping::attach(fd, kGeneration); }), "more than it holds");
    h.head.store(64);
    Reader reader(attached(fd));
    check(throws<Corrupt>([&] { reader.next(); }), "bytes that are no record");
    const std::uint32_t lie[2] = {4000, map.check(0)};
    std::memcpy(map.at(0), lie, sizeof lie);
    Reader again(attached(fd));
    check(throws<Corrupt>([&] { again.next(); }), "a record longer than what is committed");
    h.head.store(0);
    Writer writer(attached(fd));
    h.tail.store(8);
    check(throws<Corrupt>([&] { writer.backlog(); }), "released before it was committed");
    h.tail.store(0);
    h.version++;
    check(throws<Corrupt>([&] { Mapping::attach(fd, kGeneration); }), "other version");
  }
  check(throws<std::invalid_argument>([&] { Mapping::create(fd, 5000, 1); }), "odd capacity");
  ::close(fd);
  const int empty = ::memfd_create("empty", MFD_CLOEXEC);
  check(throws<Corrupt>([&] { Mapping::attach(empty, 1); }), "an empty file");
  ::close(empty);
}

}  // namespace

int main(int argc, char** argv) {
  test_edges();
  test_lies();
  test_two_threads(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 200'000);
  if (failures == 0) std::printf("ring: all good\n");
  return failures != 0;
}
