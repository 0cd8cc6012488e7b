// SPDX-License-Identifier: Apache-2.0
// Mel rows of a sound of any numbers, cut anywhere: the pieces' rows are the whole's, bit for bit.
#include "../mel.hpp"
#include "input.hpp"

using lipsync::MelStream;
using lipsync::fuzz::expect;
using lipsync::fuzz::Input;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  std::vector<std::size_t> cuts;
  for (int k = input.between(0, 12); k > 0; k--) cuts.push_back(input.number<std::uint16_t>() % 900);
  const std::size_t count = static_cast<std::size_t>(input.between(0, 3000));
  std::vector<float> sound(count);
  input.read(sound.data(), count * sizeof(float));
  for (std::size_t i = input.left() > 0 ? 0 : count / 2; i < count; i++)
    if (sound[i] == 0.0f) sound[i] = static_cast<float>(static_cast<int>(i * 7919 % 2000) - 1000) / 1000.0f;

  MelStream whole, pieces;
  const std::size_t rows = whole.rows_after(count);
  std::vector<float> expected(80 * rows), found;
  whole.push(sound.data(), count, expected.data());
  const std::size_t rest = whole.rows_at_finish();
  expected.resize(80 * (rows + rest));
  whole.finish(expected.data() + 80 * rows);

  std::size_t at = 0;
  const auto push = [&](std::size_t n) {
    const std::size_t before = found.size();
    found.resize(before + 80 * pieces.rows_after(n));
    pieces.push(sound.data() + at, n, found.data() + before);
    at += n;
  };
  for (const std::size_t cut : cuts) push(std::min(cut, count - at));
  push(count - at);
  const std::size_t before = found.size();
  found.resize(before + 80 * pieces.rows_at_finish());
  pieces.finish(found.data() + before);
  expect(found.size() == expected.size(), "as many rows");
  expect(found.empty() || std::memcmp(found.data(), expected.data(), found.size() * 4) == 0,
         "the same rows");

  if (rows > 0 && count > 0) {  // a part of it by itself
    const auto first = static_cast<std::int64_t>(input.number<std::uint16_t>() % rows);
    std::vector<float> part(80);
    lipsync::mel_rows_at(sound.data(), static_cast<std::int64_t>(count), 0, first, 1, part.data());
    expect(std::memcmp(part.data(), expected.data() + 80 * first, 320) == 0, "the same row alone");
  }
  return 0;
}
