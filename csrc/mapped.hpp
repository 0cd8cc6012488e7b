// SPDX-License-Identifier: Apache-2.0
// Copies out of a mapped file that may become shorter at any moment.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstring>

#ifdef __linux__
#include <sys/uio.h>
#include <unistd.h>
#endif

namespace lipsync {

// Copies `size` bytes; 0, or EFAULT where some of them are not there any more.
//
// A byte that a file has lost ends the process that touches it (SIGBUS), and a look at the file's
// length beforehand can be out of date a moment later. The kernel, asked to copy from this very
// process, says so instead. Where it must not be asked (an old seccomp profile), the bytes are
// touched.
inline int copy_mapped(const std::byte* from, std::size_t size, std::byte* to) {
#ifdef __linux__
  while (size > 0) {
    const iovec there{const_cast<std::byte*>(from), size}, here{to, size};
    const ssize_t copied = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (copied < 0 && errno == EFAULT) return EFAULT;
    if (copied < 0) break;
    if (copied == 0) return EFAULT;
    from += copied;
    to += copied;
    size -= static_cast<std::size_t>(copied);
  }
#endif
  if (size > 0) std::memcpy(to, from, size);
  return 0;
}

}  // namespace lipsync
