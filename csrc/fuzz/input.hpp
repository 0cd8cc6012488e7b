// SPDX-License-Identifier: Apache-2.0
// A fuzzer's bytes as numbers and arrays; zeros where they end.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace lipsync::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  std::size_t left() const { return left_; }

  // The next bytes, as many as are left at most; the rest stays zero.
  void read(void* to, std::size_t size) {
    const std::size_t some = std::min(size, left_);
    if (some > 0) std::memcpy(to, data_, some);
    data_ += some;
    left_ -= some;
  }

  template <typename T>
  T number() {
    T value{};
    read(&value, sizeof value);
    return value;
  }

  // A whole number, `least` to `most`.
  int between(int least, int most) {
    return least + static_cast<int>(number<std::uint16_t>() % (most - least + 1));
  }

  std::vector<std::uint8_t> bytes(std::size_t size) {
    std::vector<std::uint8_t> out(size);
    read(out.data(), size);
    return out;
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

inline void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "NOT AS IT SHOULD BE: %s\n", what);
  std::abort();
}

}  // namespace lipsync::fuzz
