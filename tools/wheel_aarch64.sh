#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The server's wheel for 64-bit Arm, cross-compiled here; with --try its self-test runs under
# qemu-user, with Debian's Python for Arm and the wheels for Arm of what it needs.
#   apt-get install g++-aarch64-linux-gnu qemu-user
#   tools/wheel_aarch64.sh [--try]
# It is for the version of Python that runs this (PYTHON, .venv's by default).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=build/aarch64-wheel
for program in aarch64-linux-gnu-g++ "$python"; do
  command -v "$program" > /dev/null || {
    echo "error: $program is not there: apt-get install g++-aarch64-linux-gnu qemu-user; make .venv/.core" >&2
    exit 2
  }
done
tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
suffix=.cpython-${tag#cp}-aarch64-linux-gnu.so
rm -rf "$build"
mkdir -p "$build"
export _PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX="$suffix" LIPSYNC_CUDA=off
export CMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64.cmake"
"$python" -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir "$build" \
  -C cmake.define.PYTHON_MODULE_EXTENSION="$suffix" -C cmake.define.PYTHON_MODULE_DEBUG_POSTFIX= ./client .
ls "$build"/*.whl
[ "${1:-}" = --try ] || exit 0

# ---------------------------------------------------------------- a Python for Arm
[ "$tag" = cp311 ] || { echo "error: Debian's Python is 3.11, this one is $tag: give PYTHON" >&2; exit 2; }
here=$PWD/$build
mkdir -p "$here/apt/state/lists/partial" "$here/apt/cache/archives/partial" "$here/debs" "$here/root"
# Lists of its own: this machine's packages stay what they are.
apt() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$here/apt/state" \
    -o Dir::State::status=/dev/null -o Dir::Cache="$here/apt/cache" -o APT::Sandbox::User=root "$@"
}
apt update
(cd "$here/debs" && apt download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 \
  liblzma5 libsqlite3-0 libuuid1 libcrypt1 libtinfo6 libncursesw6 libreadline8 \
  libpython3.11-minimal libpython3.11-stdlib python3.11-minimal)
for package in "$here"/debs/*.deb; do dpkg-deb --extract "$package" "$here/root"; done

# ONNX Runtime 1.32 ends Debian's qemu (7.2) as it is loaded; a processor it does not.
glibc=$(for n in 17 24 26 27 28; do printf ' --platform manylinux_2_%s_aarch64' $n; done)
# shellcheck disable=SC2086
"$python" -m pip --disable-pip-version-check install --quiet --target "$here/site" --only-binary=:all: \
  $glibc --platform manylinux2014_aarch64 --platform linux_aarch64 --python-version 3.11 \
  --implementation cp --abi cp311 --abi abi3 --abi none \
  "$here"/lipsync_fast_client-*.whl "$here"/lipsync_fast-*.whl 'onnxruntime<1.24'
qemu-aarch64 -L "$here/root" -E PYTHONPATH="$here/site" "$here/root/usr/bin/python3.11" -P -m lipsync_fast doctor
