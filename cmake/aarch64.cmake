# SPDX-License-Identifier: Apache-2.0
# Cross-compiling for 64-bit Arm with Debian's compiler; programs run under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
find_program(LIPSYNC_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
if(LIPSYNC_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${LIPSYNC_QEMU} -L /usr/aarch64-linux-gnu)
endif()
