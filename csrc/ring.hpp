// SPDX-License-Identifier: Apache-2.0
// A lock-free ring of variable-size records between one writing and one reading process.
//
// The segment is a file descriptor that both processes map (a memfd: it has no name, so nothing is
// left behind when all its holders are gone). Its first page is the header; the data follow, and
// are mapped twice in a row, so that a record that passes the end of the ring is still one piece
// of memory for both sides.
//
//   segment (all numbers little-endian, u64 unless said otherwise)
//   +------+--------------------------------------------------------------------------------+
//   |    0 | magic "LSRING\0\1"                                     written once, by create |
//   |    8 | version (u32), header size (u32)                       written once, by create |
//   |   16 | capacity: bytes of data, a power of two, whole pages   written once, by create |
//   |   24 | generation: chosen by the creator                      written once, by create |
//   +------+--------------------------------------------------------------------------------+
//   |   64 | head: bytes ever committed                             stored by the writer    |
//   |   72 | space_wanted (u32): the writer sleeps                  set by W, cleared by R  |
//   +------+--------------------------------------------------------------------------------+
//   |  128 | tail: bytes ever released                              stored by the reader    |
//   |  136 | data_wanted (u32): the reader sleeps                   set by R, cleared by W  |
//   +------+--------------------------------------------------------------------------------+
//   | 4096 | data [capacity]; byte n of the stream lies at n % capacity                     |
//   +------+--------------------------------------------------------------------------------+
//
//   record, aligned to 8 bytes
//   +---------------+----------------+----------------------+------------------------------+
//   | u32 length L  | u32 check      | L bytes of payload   | 0..7 bytes up to the next    |
//   +---------------+----------------+----------------------+------------------------------+
//   check = low half of (offset in the stream / 8) xor generation: what was not written here and
//   now, by a writer of this generation, is not taken for a record.
//
// States of the bytes between two cursors, modulo capacity:
//
//   tail .. head              committed: the reader may read, and releases in order
//   head .. tail + capacity   free: the writer may fill; nobody else looks at it
//
// A record becomes visible by one store, that of `head`: a writer that is killed at any point has
// either committed it or left nothing. A record is given back by one store, that of `tail`: a
// reader that is killed has either released it or its successor reads it again. So neither side
// can tear a record or block the other; a new process takes up where the cursors stand.
//
// Threads: one at a time may use a Writer, one at a time a Reader. Every atomic below names the
// store that it pairs with.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace lipsync::ring {

inline constexpr std::uint64_t kMagic = 0x0100'474e'4952'534cULL;  // "LSRING\0\1"
inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::size_t kHeader = 4096;
inline constexpr std::size_t kPrefix = 8;  // length and check
inline constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
inline constexpr std::size_t kSmallest = 4096, kLargest = std::size_t{1} << 30;

struct Header {
  std::uint64_t magic;
  std::uint32_t version, header_size;
  std::uint64_t capacity, generation;
  alignas(64) std::atomic<std::uint64_t> head;
  std::atomic<std::uint32_t> space_wanted;
  alignas(64) std::atomic<std::uint64_t> tail;
  std::atomic<std::uint32_t> data_wanted;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(offsetof(Header, head) == 64 && offsetof(Header, tail) == 128);
static_assert(sizeof(Header) <= kHeader);

// What the segment says cannot be: it is another program's, or its memory was overwritten.
struct Corrupt : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr std::uint64_t round_up(std::uint64_t n) { return (n + 7) & ~std::uint64_t{7}; }

// The mapped segment; unmapped when it goes. Does not own the descriptor.
class Mapping {
 public:
  // Writes the header of a new segment and takes its memory, so that a full machine is an error
  // now and not a SIGBUS later. The descriptor must be an empty memfd that may be sealed.
  static Mapping create(int fd, std::size_t capacity, std::uint64_t generation) {
    if (capacity < kSmallest || capacity > kLargest || (capacity & (capacity - 1)) != 0)
      throw std::invalid_argument("ring of " + std::to_string(capacity) +
                                  " bytes: expected a power of two from 4096 to 2^30");
    const auto size = static_cast<off_t>(kHeader + capacity);
    if (const int error = ::posix_fallocate(fd, 0, size); error != 0)
      throw std::system_error(error, std::generic_category(), "cannot allocate a ring");
    // From now on its size cannot change, so no access to the mapping can fail.
    if (::fcntl(fd, F_ADD_SEALS, kSeals) != 0)
      throw std::system_error(errno, std::generic_category(), "cannot seal a ring");
    Mapping made(fd, capacity);
    Header& h = *made.header_;
    h.version = kVersion;
    h.header_size = kHeader;
    h.capacity = capacity;
    h.generation = generation;
    h.magic = kMagic;
    return made;
  }

  // Maps a segment that `create` made. Throws Corrupt when it is none, or of another version,
  // size or generation than expected.
  static Mapping attach(int fd, std::uint64_t generation) {
    if ((::fcntl(fd, F_GET_SEALS) & kSeals) != kSeals) throw Corrupt("not a ring: not sealed");
    struct stat about{};
    if (::fstat(fd, &about) != 0)
      throw std::system_error(errno, std::generic_category(), "cannot look at a ring");
    if (about.st_size < static_cast<off_t>(kHeader + kSmallest) ||
        about.st_size > static_cast<off_t>(kHeader + kLargest))
      throw Corrupt("not a ring: " + std::to_string(about.st_size) + " bytes");
    const auto capacity = static_cast<std::size_t>(about.st_size) - kHeader;
    if ((capacity & (capacity - 1)) != 0)
      throw Corrupt("not a ring: " + std::to_string(about.st_size) + " bytes");
    Mapping made(fd, capacity);
    const Header& h = *made.header_;
    if (h.magic != kMagic) throw Corrupt("not a ring");
    if (h.version != kVersion || h.header_size != kHeader)
      throw Corrupt("ring of version " + std::to_string(h.version) + ": expected " +
                    std::to_string(kVersion));
    if (h.capacity != capacity)
      throw Corrupt("ring says " + std::to_string(h.capacity) + " bytes and has " +
                    std::to_string(capacity));
    if (h.generation != generation)
      throw Corrupt("ring of generation " + std::to_string(h.generation) + ": expected " +
                    std::to_string(generation));
    made.check_cursors();
    return made;
  }

  Mapping(Mapping&& other) noexcept
      : header_(std::exchange(other.header_, nullptr)), capacity_(other.capacity_) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping() {
    if (header_ != nullptr) ::munmap(header_, kHeader + 2 * capacity_);
  }

  Header& header() const { return *header_; }
  std::size_t capacity() const { return capacity_; }
  std::byte* at(std::uint64_t position) const {
    return reinterpret_cast<std::byte*>(header_) + kHeader + (position & (capacity_ - 1));
  }
  std::uint32_t check(std::uint64_t position) const {
    return static_cast<std::uint32_t>((position / 8) ^ header_->generation);
  }

 private:
  Mapping(int fd, std::size_t capacity) : capacity_(capacity) {
    const std::size_t whole = kHeader + 2 * capacity;
    // Reserve the room first, then lay the file over it, its data a second time behind the first.
    // All pages are mapped now, so that no frame pays for it later.
    void* room = ::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
      throw std::system_error(errno, std::generic_category(), "cannot map a ring");
    const auto lay = [&](std::size_t where, std::size_t from, std::size_t size) {
      void* at = static_cast<std::byte*>(room) + where;
      return ::mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd,
                    static_cast<off_t>(from)) != MAP_FAILED;
    };
    if (!lay(0, 0, kHeader + capacity) || !lay(kHeader + capacity, kHeader, capacity)) {
      const int error = errno;
      ::munmap(room, whole);
      throw std::system_error(error, std::generic_category(), "cannot map a ring");
    }
    header_ = static_cast<Header*>(room);
  }

  void check_cursors() const {
    // Pairs with the stores of head and tail in commit and release: whoever attaches sees them.
    const std::uint64_t tail = header_->tail.load(std::memory_order_acquire);
    const std::uint64_t head = header_->head.load(std::memory_order_acquire);
    if (head % 8 != 0 || tail % 8 != 0 || head < tail || head - tail > capacity_)
      throw Corrupt("ring with cursors " + std::to_string(tail) + " and " + std::to_string(head));
  }

  Header* header_ = nullptr;
  std::size_t capacity_;
};

// The writing side. One record at a time: try_reserve, fill, commit (or reserve again).
class Writer {
 public:
  explicit Writer(std::shared_ptr<const Mapping> mapping)
      : map_(std::move(mapping)),
        // Only the writer stores head: relaxed reads its own, or its predecessor's last, value.
        head_(map_->header().head.load(std::memory_order_relaxed)),
        // Pairs with Reader::release: bytes before tail are no longer read.
        tail_(map_->header().tail.load(std::memory_order_acquire)) {}

  // The largest payload that ever fits.
  std::size_t largest() const { return map_->capacity() - kPrefix; }
  // Payload bytes that fit now.
  std::size_t room() {
    refresh();
    const std::size_t free = map_->capacity() - static_cast<std::size_t>(head_ - tail_);
    return free < kPrefix ? 0 : free - kPrefix;
  }

  // Room for `size` bytes, or nothing when the ring is too full now. Throws length_error when it
  // can never fit. What was reserved before and not committed is given up.
  std::optional<std::span<std::byte>> try_reserve(std::size_t size) {
    if (size > largest())
      throw std::length_error("record of " + std::to_string(size) + " bytes: the ring holds " +
                              std::to_string(largest()));
    const std::uint64_t need = kPrefix + round_up(size);
    if (head_ + need - tail_ > map_->capacity()) {
      refresh();
      if (head_ + need - tail_ > map_->capacity()) return std::nullopt;
    }
    reserved_ = size;
    return std::span(map_->at(head_) + kPrefix, size);
  }

  // Makes the first `size` reserved bytes a record. True when the reader sleeps: ring its doorbell.
  bool commit(std::size_t size) {
    if (!reserved_ || size > *reserved_) throw std::logic_error("commit without a reservation");
    reserved_.reset();
    const std::uint32_t prefix[2] = {static_cast<std::uint32_t>(size), map_->check(head_)};
    std::memcpy(map_->at(head_), prefix, kPrefix);
    head_ += kPrefix + round_up(size);
    Header& h = map_->header();
    // Pairs with the load of head in Reader::next (acquire: the record's bytes are there), and with
    // its store of data_wanted: both sides store, then load the other's word, all seq_cst, so that
    // not both can miss.
    h.head.store(head_, std::memory_order_seq_cst);
    // Pairs with the store in Reader::want_data. The exchange rings once for many commits.
    return h.data_wanted.load(std::memory_order_seq_cst) != 0 &&
           h.data_wanted.exchange(0, std::memory_order_seq_cst) != 0;
  }

  // Says that the writer is about to sleep until `size` bytes fit. False when they do by now: then
  // do not sleep.
  bool want_space(std::size_t size) {
    Header& h = map_->header();
    // Pairs with the load in Reader::release; see commit.
    h.space_wanted.store(1, std::memory_order_seq_cst);
    // Pairs with the store of tail in Reader::release.
    tail_ = h.tail.load(std::memory_order_seq_cst);
    if (head_ + kPrefix + round_up(size) - tail_ > map_->capacity()) return true;
    h.space_wanted.store(0, std::memory_order_relaxed);
    return false;
  }

  // Bytes committed and not yet released.
  std::uint64_t backlog() {
    refresh();
    return head_ - tail_;
  }
  std::uint64_t position() const { return head_; }

 private:
  void refresh() {
    // Pairs with Reader::release: the reader has done with what lies before tail.
    const std::uint64_t tail = map_->header().tail.load(std::memory_order_acquire);
    if (tail > head_ || tail < tail_ || tail % 8 != 0)
      throw Corrupt("ring released up to " + std::to_string(tail) + " of " + std::to_string(head_));
    tail_ = tail;
  }

  std::shared_ptr<const Mapping> map_;
  std::uint64_t head_, tail_;
  std::optional<std::size_t> reserved_;
};

// The reading side: `next` gives records in order, `release` gives the oldest back. Several may be
// held at a time.
class Reader {
 public:
  explicit Reader(std::shared_ptr<const Mapping> mapping)
      : map_(std::move(mapping)),
        // Only the reader stores tail: its own, or its predecessor's last, value.
        tail_(map_->header().tail.load(std::memory_order_relaxed)),
        next_(tail_),
        head_(tail_) {}

  // The next record's payload, or nothing when there is none now. It stays as it is until it is
  // released. Throws Corrupt when what lies there is no record.
  std::optional<std::span<const std::byte>> next() {
    if (next_ == head_) {
      // Pairs with the store in Writer::commit: bytes before head are the writer's last word.
      const std::uint64_t head = map_->header().head.load(std::memory_order_acquire);
      if (head < next_ || head - tail_ > map_->capacity() || head % 8 != 0)
        throw Corrupt("ring filled up to " + std::to_string(head) + ", read up to " +
                      std::to_string(next_));
      head_ = head;
      if (next_ == head_) return std::nullopt;
    }
    std::uint32_t prefix[2];
    std::memcpy(prefix, map_->at(next_), kPrefix);
    const std::uint64_t whole = kPrefix + round_up(prefix[0]);
    if (prefix[1] != map_->check(next_) || whole > head_ - next_)
      throw Corrupt("no record at " + std::to_string(next_));
    const std::span<const std::byte> payload(map_->at(next_) + kPrefix, prefix[0]);
    next_ += whole;
    held_++;
    return payload;
  }

  // Gives the oldest held record back. True when the writer sleeps: ring its doorbell.
  bool release() {
    if (held_ == 0) throw std::logic_error("release without a record");
    held_--;
    std::uint32_t length;
    std::memcpy(&length, map_->at(tail_), sizeof length);
    // Checked by next; checked again, for a mad writer could have changed it since.
    const std::uint64_t whole = kPrefix + round_up(length);
    if (whole > next_ - tail_) throw Corrupt("no record at " + std::to_string(tail_));
    tail_ += whole;
    Header& h = map_->header();
    // Pairs with the loads of tail in Writer::refresh and want_space: no byte before it is read
    // any more. seq_cst with space_wanted as in Writer::commit.
    h.tail.store(tail_, std::memory_order_seq_cst);
    // Pairs with the store in Writer::want_space.
    return h.space_wanted.load(std::memory_order_seq_cst) != 0 &&
           h.space_wanted.exchange(0, std::memory_order_seq_cst) != 0;
  }

  // Says that the reader is about to sleep. False when a record is there: then do not sleep.
  bool want_data() {
    Header& h = map_->header();
    // Pairs with the load in Writer::commit; see there.
    h.data_wanted.store(1, std::memory_order_seq_cst);
    // Pairs with the store of head in Writer::commit.
    if (h.head.load(std::memory_order_seq_cst) == next_) return true;
    h.data_wanted.store(0, std::memory_order_relaxed);
    return false;
  }

  std::size_t held() const { return held_; }
  std::uint64_t position() const { return tail_; }

 private:
  std::shared_ptr<const Mapping> map_;
  std::uint64_t tail_, next_, head_;
  std::size_t held_ = 0;
};

}  // namespace lipsync::ring
