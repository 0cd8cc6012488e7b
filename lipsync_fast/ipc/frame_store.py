# SPDX-License-Identifier: Apache-2.0
"""What engines make of an avatar's frames once, kept in memory that all of them share.

What a frame needs besides the audio is the same for every engine. So an engine that has just
started finds what the others have made; each further one costs little memory; and one that dies has
little to give back to the system, which is what it takes until its death is known.

The memory has no name (memfd): the supervisor makes one for each avatar and hands its descriptor to
engines, and it goes with the last process that holds it.

    page 0        magic, version, records, bytes of a record, whose records they are (32 bytes)
    then          a byte for each record: 1 where it is there, else 0; to the end of a page
    then          the records, each from the beginning of a page on

A record is written first and its byte then, so a killed writer leaves a missing record. Two that
write the same one write the same bytes. Writers use ``pwrite`` rather than the mapping: where there
is no memory left, that is an error; a mapping would end the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence

from lipsync_fast.errors import RingError, words_of

PAGE = 4096
_MAGIC, _VERSION = b"lipsync frames\0\0", 1
_HEAD = struct.Struct("<16sIIQ32s")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
Buffer = bytes | bytearray | memoryview


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class FrameStore:
    """One process's view of the shared memory of an avatar; for any thread.

    Args:
        fd: as ``create`` gave it, in any process; closed by the caller, at any time.
        identity: 32 bytes that tell these records from all others.
        count: records.
        size: bytes of a record.

    Raises:
        RingError: it is used for other records, or cannot be mapped.
    """

    def __init__(self, fd: int, identity: bytes, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._stride = _pages(size)
        self._first = PAGE + _pages(count)
        total = self._first + count * self._stride
        head = _HEAD.pack(_MAGIC, _VERSION, count, size, identity)
        try:
            # Each step also where another process has done it, or was killed before it had.
            if os.fstat(fd).st_size == 0:
                os.ftruncate(fd, total)
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL:
                with contextlib.suppress(PermissionError):
                    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            if os.pread(fd, len(head), 0) == bytes(len(head)):
                os.pwrite(fd, head, 0)
            if os.fstat(fd).st_size != total or os.pread(fd, len(head), 0) != head:
                raise RingError("the shared frames are those of another avatar")
            self._map = mmap.mmap(fd, total, mmap.MAP_SHARED, mmap.PROT_READ)
            self._fd = os.dup(fd)
        except (OSError, ValueError) as error:
            raise RingError(f"cannot share frames: {words_of(error)}") from None
        self._view = memoryview(self._map)

    @staticmethod
    def create() -> int:
        """Descriptor of new memory, of no size until its first user.

        Raises:
            RingError: no more descriptors.
        """
        try:
            return os.memfd_create("lipsync-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise RingError(f"cannot make shared memory: {error.strerror}") from None

    def find(self, index: int) -> memoryview | None:
        """A record, read-only, valid as long as it is held; None where it is missing.

        Raises:
            IndexError: there is no such record.
        """
        at = self._place(index)
        if not self._view[PAGE + index]:
            return None
        return self._view[at : at + self.size]

    def put(self, index: int, parts: Sequence[Buffer]) -> bool:
        """Write a record of several parts, one behind the other; False where there is no memory.

        Raises:
            ValueError: they are not as long as a record.
            IndexError: there is no such record.
        """
        at = self._place(index)
        if sum(memoryview(part).nbytes for part in parts) != self.size:
            raise ValueError(f"parts of a record of {self.size} bytes expected")
        try:
            for part in parts:
                rest = memoryview(part).cast("B")
                while rest:
                    done = os.pwrite(self._fd, rest, at)
                    at, rest = at + done, rest[done:]
            os.pwrite(self._fd, b"\1", PAGE + index)
        except OSError:
            return False
        return True

    def _place(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"record {index} of {self.count}")
        return self._first + index * self._stride

    @property
    def there(self) -> int:
        """Records that are there."""
        return bytes(self._view[PAGE : PAGE + self.count]).count(1)

    def close(self) -> None:
        """Write no more; what was found stays valid as long as it is held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
