# SPDX-License-Identifier: Apache-2.0
"""The ring in one process: against a deque, its edges, its bells, and what it refuses."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections import deque
from collections.abc import Iterator

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lipsync_fast.errors import RingError
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter

CAPACITY = 4096


@pytest.fixture
def handle() -> Iterator[RingHandle]:
    made = RingHandle.create(CAPACITY, 3)
    yield made
    made.close()


def put(writer: RingWriter, data: bytes) -> bool:
    view = writer.try_reserve(len(data))
    if view is None:
        return False
    view[:] = data
    writer.commit(len(data))
    return True


class RingAgainstDeque(RuleBasedStateMachine):
    """Any order of writes, reads, releases and new peers gives what a bounded deque would give."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: deque[bytes] = deque()
        self.held: deque[tuple[memoryview, bytes]] = deque()
        self.used = 0

    @initialize(power=st.integers(12, 14))
    def make(self, power: int) -> None:
        self.handle = RingHandle.create(1 << power, power)
        self.capacity = 1 << power
        self.writer, self.reader = RingWriter(self.handle), RingReader(self.handle)

    @staticmethod
    def space(size: int) -> int:
        return 8 + -(-size // 8) * 8

    @rule(size=st.integers(0, 5000), extra=st.integers(0, 100), seed=st.integers(0, 255))
    def write(self, size: int, extra: int, seed: int) -> None:
        """Reserve more than is committed in the end."""
        data = bytes((seed + i) % 256 for i in range(size))
        if size + extra > self.writer.largest:
            with pytest.raises(ValueError, match="the ring holds"):
                self.writer.try_reserve(size + extra)
            return
        view = self.writer.try_reserve(size + extra)
        fits = self.used + self.space(size + extra) <= self.capacity
        assert (view is not None) == fits
        if view is None:
            return
        assert len(view) == size + extra
        view[:size] = data
        self.writer.commit(size)
        self.committed.append(data)
        self.used += self.space(size)

    @rule(size=st.integers(0, 1000))
    def reserve_in_vain(self, size: int) -> None:
        view = self.writer.try_reserve(size)
        if view is not None:
            view[:] = b"\xff" * size

    @rule()
    def read(self) -> None:
        view = self.reader.next()
        if not self.committed:
            assert view is None
            return
        assert view is not None
        assert view.readonly
        self.held.append((view, self.committed.popleft()))

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        view, data = self.held.popleft()
        assert bytes(view) == data
        self.used -= self.space(len(data))
        self.reader.release()

    @rule()
    def new_writer(self) -> None:
        self.writer = RingWriter(self.handle)

    @rule()
    def new_reader(self) -> None:
        """What was held and not released comes again."""
        self.reader = RingReader(self.handle)
        self.committed.extendleft(data for _, data in reversed(self.held))
        self.held.clear()

    def teardown(self) -> None:
        if hasattr(self, "handle"):
            assert self.writer.backlog() == self.used
            self.handle.close()


RingAgainstDeque.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestRingAgainstDeque = RingAgainstDeque.TestCase


def test_views_outlive_the_ring(handle: RingHandle) -> None:
    writer, reader = RingWriter(handle), RingReader(handle)
    assert put(writer, b"still here")
    view = reader.next()
    del writer, reader
    assert view is not None
    assert bytes(view) == b"still here"


def test_other_generation_is_refused(handle: RingHandle) -> None:
    old = RingHandle(*handle.fds, generation=2)
    for side in (RingWriter, RingReader):
        with pytest.raises(RingError, match="generation 3: expected 2"):
            side(old)


def test_what_is_no_ring_is_refused(handle: RingHandle) -> None:
    with open("/dev/zero", "rb") as zeros, pytest.raises(RingError, match="not a ring"):
        RingReader(RingHandle(zeros.fileno(), handle.data_doorbell, handle.space_doorbell, 3))
    short = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    with pytest.raises(RingError, match="not a ring"):
        RingReader(RingHandle(short, handle.data_doorbell, handle.space_doorbell, 3))
    os.close(short)


def test_a_ring_cannot_shrink_under_its_users(handle: RingHandle) -> None:
    with pytest.raises(PermissionError):
        os.truncate(handle.memory, 0)


@pytest.mark.parametrize("capacity", [0, 5000, 1 << 31])
def test_capacity(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        RingHandle.create(capacity, 1)


def test_no_descriptors_left_is_an_error_and_leaks_none() -> None:
    """A ring takes three; there are two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = {int(fd) for fd in os.listdir("/proc/self/fd")}
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_now) + 3, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        os.close(taken.pop())
        os.close(taken.pop())
        for _ in range(3):
            with pytest.raises(RingError, match="cannot make a ring of 4096 bytes"):
                RingHandle.create(4096, 1)
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_machine_without_room_is_an_error_and_leaks_nothing() -> None:
    """Memory is taken when a ring is made, not when a frame is written into it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(RingError, match="cannot make a ring of 1048576 bytes"):
            RingHandle.create(1 << 20, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_peer_that_lies_is_found_out(handle: RingHandle) -> None:
    """Cursors and lengths that cannot be are errors on either side, and nothing is read there."""
    writer, reader = RingWriter(handle), RingReader(handle)
    assert put(writer, b"one")
    assert put(writer, b"two")
    assert reader.next() is not None
    os.pwrite(handle.memory, (4000).to_bytes(4, "little"), 4096)  # the first record's length
    with pytest.raises(RingError, match="damaged"):
        reader.release()
    os.pwrite(handle.memory, (1 << 20).to_bytes(8, "little"), 128)  # what the reader has released
    for act in (writer.room, writer.backlog, lambda: writer.reserve(4080, 0.0)):
        with pytest.raises(RingError, match="damaged"):
            act()
    os.pwrite(handle.memory, (1 << 20).to_bytes(8, "little"), 64)  # what the writer has committed
    assert reader.next() is not None, "it was seen before"
    with pytest.raises(RingError, match="damaged"):
        reader.next()


def test_waiting_reader_is_woken(handle: RingHandle) -> None:
    writer, reader = RingWriter(handle), RingReader(handle)
    assert reader.wait(0.0) is None
    go = threading.Event()

    def write() -> None:
        go.wait(30)
        for _ in range(200):
            while not put(writer, b"x" * 1000):
                assert writer.reserve(1000, 30.0) is not None

    thread = threading.Thread(target=write)
    thread.start()
    go.set()
    for _ in range(200):
        assert reader.wait(30.0) is not None
        reader.release()
    thread.join()
    assert reader.wait(0.001) is None


def test_writer_waits_boundedly(handle: RingHandle) -> None:
    writer, reader = RingWriter(handle), RingReader(handle)
    assert put(writer, b"x" * writer.largest)
    assert writer.reserve(1, 0.01) is None
    assert reader.next() is not None
    reader.release()
    assert writer.reserve(1, 0.01) is not None


def test_new_writer_wakes_the_reader_of_a_dead_one(handle: RingHandle) -> None:
    """A writer may be killed between its record and the bell."""
    reader = RingReader(handle)
    dead = RingWriter(handle)
    reader.drain()
    assert reader.want_data()
    view = dead._ring.try_reserve(1)
    assert view is not None
    assert dead._ring.commit(1), "the bell is to be rung"
    os.set_blocking(reader.doorbell, False)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(reader.doorbell)
    RingWriter(handle)
    assert os.eventfd_read(reader.doorbell) == 1


def test_trio_waits_without_a_thread(handle: RingHandle) -> None:
    async def main() -> list[bytes]:
        writer, reader = RingWriter(handle), RingReader(handle)
        got: list[bytes] = []

        async def read() -> None:
            for _ in range(50):
                got.append(bytes(await reader.wait_async()))
                reader.release()

        with trio.fail_after(30):
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                await reader.wait_async()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for i in range(50):
                    assert put(writer, b"%d" % i)
                    await trio.lowlevel.checkpoint()
        return got

    before = threading.active_count()
    assert trio.run(main) == [b"%d" % i for i in range(50)]
    assert threading.active_count() == before
