# SPDX-License-Identifier: Apache-2.0
"""Rings of records between one writing and one reading process, with doorbells to sleep by.

The ring itself is csrc/ring.hpp, which draws its memory and says what a killed process leaves:
whole records, and nothing else. This module adds who makes a ring, how it gets to another process,
and how to wait.

A ring is three descriptors and a number (``RingHandle``). They have no names, so they go with the
processes that hold them: there is nothing in /dev/shm to be left behind. They reach another process
by inheritance (``pass_fds``) or over a Unix socket (``socket.send_fds``).

When a ring is full, ``try_reserve`` says so at once, and the caller decides:

- jobs: the front admits no session whose jobs would not fit, so a full ring is an engine that
  stands still; its jobs go to another.
- frames: the engine waits for a bounded time (``reserve``), then drops the frame, counts it, and
  tells the session's end to the front when there is room again.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass

from lipsync_fast import _native
from lipsync_fast.errors import RingError, words_of

SPIN_S = 30e-6
"""How long a waiting process looks before it sleeps: about what falling asleep and waking cost."""


@dataclass(frozen=True, slots=True)
class RingHandle:
    """What a process needs to take a side of a ring.

    Attributes:
        memory: descriptor of the ring's memory.
        data_doorbell: eventfd that wakes the reader.
        space_doorbell: eventfd that wakes the writer.
        generation: the number that the ring was made with; another ring's is refused.
    """

    memory: int
    data_doorbell: int
    space_doorbell: int
    generation: int

    @classmethod
    def create(cls, capacity: int, generation: int) -> RingHandle:
        """A new, empty ring; ``close`` it, once it has been handed on, in the process that made it.

        Args:
            capacity: bytes, a power of two from 4096 to 2^30; taken from the machine now.
            generation: tells this ring from all others of the same peers.

        Raises:
            RingError: the machine has no room, or no more descriptors.
        """
        fds: list[int] = []
        try:
            fds.append(os.memfd_create("lipsync-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            _native.ring_create(fds[0], capacity, generation)
            fds.extend(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        except (OSError, RuntimeError) as error:
            for fd in fds:
                os.close(fd)
            raise RingError(f"cannot make a ring of {capacity} bytes: {words_of(error)}") from None
        return cls(fds[0], fds[1], fds[2], generation)

    @property
    def fds(self) -> tuple[int, int, int]:
        """The descriptors, in the order of the attributes."""
        return self.memory, self.data_doorbell, self.space_doorbell

    def close(self) -> None:
        """Close the descriptors in this process; sides that were taken keep working memory."""
        for fd in self.fds:
            os.close(fd)


def _damaged(error: Exception) -> RingError:
    """What the native ring finds wrong with its memory, as one of our errors."""
    return RingError(f"the ring is damaged: {error}")


class _Doorbell:
    """An eventfd: rung any number of times, read empty once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def drain(self) -> None:
        """Read it empty: forget the ringing up to now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def wait(self, seconds: float) -> None:
        """Sleep until it rings, or for so long."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(max(0, int(seconds * 1000 + 0.999)))
        self.drain()


class RingWriter:
    """The writing side. One thread; the process that had it before must be gone."""

    def __init__(self, handle: RingHandle) -> None:
        """Take the side, and wake a reader that waits for a writer that is gone.

        Raises:
            RingError: it is no ring, or another generation's.
        """
        try:
            self._ring = _native.RingWriter(handle.memory, handle.generation)
        except (OSError, _native.RingCorruptError) as error:
            raise RingError(f"cannot write to the ring: {words_of(error)}") from None
        self._data, self._space = _Doorbell(handle.data_doorbell), _Doorbell(handle.space_doorbell)
        self._data.ring()

    @property
    def largest(self) -> int:
        """The largest record that ever fits, in bytes."""
        return self._ring.largest

    @property
    def position(self) -> int:
        """Bytes committed since the ring was made."""
        return self._ring.position

    def backlog(self) -> int:
        """Bytes that the reader has not released yet."""
        try:
            return self._ring.backlog()
        except _native.RingCorruptError as error:
            raise _damaged(error) from None

    def room(self) -> int:
        """The largest record that fits now; 0 when there is none."""
        try:
            return self._ring.room()
        except _native.RingCorruptError as error:
            raise _damaged(error) from None

    def try_reserve(self, size: int) -> memoryview | None:
        """A writable view of ``size`` bytes to fill and commit, or None when the ring is too full.

        A reservation that is not committed is given up by the next one.

        Raises:
            ValueError: ``size`` is more than the ring ever holds.
            RingError: what the reader has released cannot be.
        """
        try:
            return self._ring.try_reserve(size)
        except _native.RingCorruptError as error:
            raise _damaged(error) from None

    def reserve(self, size: int, timeout_s: float) -> memoryview | None:
        """Like ``try_reserve``, but wait up to ``timeout_s`` for the reader to make room."""
        view = self.try_reserve(size)
        if view is not None:
            return view
        begun = time.monotonic()
        while time.monotonic() - begun < min(SPIN_S, timeout_s):
            if (view := self.try_reserve(size)) is not None:
                return view
        while (left := begun + timeout_s - time.monotonic()) > 0:
            if self._ring.want_space(size):
                self._space.wait(left)
            if (view := self.try_reserve(size)) is not None:
                return view
        return None

    def commit(self, size: int) -> None:
        """Make the first ``size`` reserved bytes a record, at once and whole.

        The view must not be written to any more.
        """
        if self._ring.commit(size):
            self._data.ring()


class RingReader:
    """The reading side. One thread; the process that had it before must be gone."""

    def __init__(self, handle: RingHandle) -> None:
        """Take the side: what its former holder had not released comes again. Wakes the writer.

        Raises:
            RingError: it is no ring, or another generation's.
        """
        try:
            self._ring = _native.RingReader(handle.memory, handle.generation)
        except (OSError, _native.RingCorruptError) as error:
            raise RingError(f"cannot read from the ring: {words_of(error)}") from None
        self._data, self._space = _Doorbell(handle.data_doorbell), _Doorbell(handle.space_doorbell)
        self._space.ring()

    @property
    def doorbell(self) -> int:
        """The descriptor that becomes readable once ``want_data`` was true and a record came."""
        return self._data.fd

    @property
    def held(self) -> int:
        """Records given by ``next`` and not yet released."""
        return self._ring.held

    @property
    def position(self) -> int:
        """Bytes released since the ring was made."""
        return self._ring.position

    def next(self) -> memoryview | None:
        """A read-only view of the next record, or None when there is none now.

        It stays as it is until it is released; several may be held.

        Raises:
            RingError: what lies there is no record.
        """
        try:
            return self._ring.next()
        except _native.RingCorruptError as error:
            raise _damaged(error) from None

    def release(self) -> None:
        """Give the oldest held record back; its view must not be read any more.

        Raises:
            RingError: its length was changed since ``next``.
        """
        try:
            if self._ring.release():
                self._space.ring()
        except _native.RingCorruptError as error:
            raise _damaged(error) from None

    def want_data(self) -> bool:
        """Ask for the doorbell. False when there is a record by now: then do not sleep."""
        return self._ring.want_data()

    def drain(self) -> None:
        """Read the doorbell empty, after it has become readable."""
        self._data.drain()

    def wait(self, timeout_s: float) -> memoryview | None:
        """The next record, waiting up to ``timeout_s`` for it; None when none came."""
        begun = time.monotonic()
        while True:
            if (record := self.next()) is not None:
                return record
            now = time.monotonic()
            if now - begun >= timeout_s:
                return None
            if now - begun >= SPIN_S and self.want_data():
                self._data.wait(begun + timeout_s - now)

    async def wait_async(self) -> memoryview:
        """The next record, when it is there (trio; cancellable, and nothing is lost then)."""
        import trio

        while True:
            if (record := self.next()) is not None:
                return record
            if self.want_data():
                await trio.lowlevel.wait_readable(self.doorbell)
                self.drain()
