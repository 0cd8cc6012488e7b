#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The native code's tests on 64-bit Arm: cross-compiled here, run under qemu-user.
#   apt-get install g++-aarch64-linux-gnu qemu-user cmake ninja-build
# Says too how much of the decoder's kernel is vector instructions (NEON). How fast it is on such a
# processor, an emulator cannot say.
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/aarch64}
mkdir -p "$(dirname "$build")"
for program in aarch64-linux-gnu-g++ qemu-aarch64 cmake ninja; do
  command -v "$program" > /dev/null || {
    echo "error: $program is not installed: apt-get install g++-aarch64-linux-gnu qemu-user cmake ninja-build" >&2
    exit 2
  }
done
cmake -S . -B "$build" -G Ninja -DCMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64.cmake" -DLIPSYNC_TESTS=ON > "$build.log" 2>&1 ||
  { cat "$build.log" >&2; exit 1; }
ninja -C "$build" --quiet
ctest --test-dir "$build" --output-on-failure

counted() { aarch64-linux-gnu-objdump -d "$build"/CMakeFiles/test_up.dir/csrc/up_portable.cpp.o | grep -cE "$1" || true; }
echo "the decoder's kernel: $(counted '\s(fmul|fadd|fsub)\s+v[0-9]+\.4s') multiplications and additions of four numbers," \
  "$(counted '\s(fmul|fadd|fsub)\s+s[0-9]+') of one"
