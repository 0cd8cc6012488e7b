# SPDX-License-Identifier: Apache-2.0
"""Memory that engines share for what they make of an avatar's frames (ipc/frame_store.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.errors import RingError
from lipsync_fast.ipc.frame_store import FrameStore

ME, OTHER = b"m" * 32, b"o" * 32


@pytest.fixture
def fd() -> Iterator[int]:
    made = FrameStore.create()
    yield made
    os.close(made)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 9_000),
    st.lists(st.tuples(st.booleans(), st.integers(0, 39), st.integers(0, 255)), max_size=30),
)
def test_what_one_writes_the_other_finds(
    count: int, size: int, steps: list[tuple[bool, int, int]]
) -> None:
    fd = FrameStore.create()
    stores = [FrameStore(fd, ME, count, size) for _ in range(2)]
    os.close(fd)
    model: dict[int, bytes] = {}
    for second, index, value in steps:
        at = index % count
        if at not in model:
            model[at] = bytes([value]) * size
            half = size // 2
            assert stores[second].put(at, [model[at][:half], bytearray(model[at][half:])])
        for store in stores:
            for k in range(count):
                found = store.find(k)
                assert (None if found is None else bytes(found)) == model.get(k)
    assert [store.there for store in stores] == [len(model)] * 2
    for store in stores:
        store.close()


def test_what_is_found_cannot_be_written_and_outlives_the_store(fd: int) -> None:
    store = FrameStore(fd, ME, 3, 5000)
    assert store.put(1, [b"x" * 5000])
    found = store.find(1)
    assert found is not None
    assert found.readonly
    store.close()
    del store
    assert bytes(found) == b"x" * 5000


def test_another_avatars_is_refused(fd: int) -> None:
    FrameStore(fd, ME, 3, 100).put(0, [b"x" * 100])
    for identity, count, size in ((OTHER, 3, 100), (ME, 4, 100), (ME, 3, 101), (ME, 3, 5000)):
        with pytest.raises(RingError, match="another avatar"):
            FrameStore(fd, identity, count, size)
    assert FrameStore(fd, ME, 3, 100).there == 1


def test_one_that_was_killed_as_it_began_is_in_nobodys_way() -> None:
    fd = FrameStore.create()
    os.ftruncate(fd, 4096 + 4096 + 3 * 4096)
    first, second = (FrameStore(fd, ME, 3, 100) for _ in range(2))
    assert first.put(2, [b"x" * 100])
    assert bytes(second.find(2) or b"") == b"x" * 100
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_nobody_can_take_its_memory_away(fd: int) -> None:
    """Cut short, it would end those that read it."""
    FrameStore(fd, ME, 3, 100)
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)


def test_what_is_no_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"something else")
        file.flush()
        with pytest.raises(RingError):
            FrameStore(file.fileno(), ME, 3, 100)
    with pytest.raises(RingError):
        FrameStore(10_000, ME, 3, 100)


def test_a_record_has_its_length(fd: int) -> None:
    store = FrameStore(fd, ME, 3, 100)
    for parts in ([b"x" * 99], [b"x" * 100, b"y"], []):
        with pytest.raises(ValueError, match="100 bytes"):
            store.put(0, parts)
    assert store.find(0) is None
    for index in (-1, 3, 10_000):
        with pytest.raises(IndexError):
            store.find(index)
        with pytest.raises(IndexError):
            store.put(index, [b"x" * 100])


def test_without_memory_it_says_so() -> None:
    """A file that may not grow so far stands for a machine without memory."""
    code = textwrap.dedent("""
        import os, resource, signal
        from lipsync_fast.ipc.frame_store import FrameStore
        fd = FrameStore.create()
        store = FrameStore(fd, b"m" * 32, 10, 100_000)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        told = [store.put(k, [b"x" * 100_000]) for k in range(10)]
        there = [store.find(k) is not None for k in range(10)]
        assert told == there == [True] * 3 + [False] * 7, (told, there)
        print("said so")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "said so\n", done.stderr


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_records_or_none(fd: int) -> None:
    """Killed thirty times in mid-write; what is said to be there is right."""
    size, count = 300_000, 64
    code = textwrap.dedent("""
        import sys
        from lipsync_fast.ipc.frame_store import FrameStore
        store = FrameStore(int(sys.argv[1]), b"m" * 32, 64, 300_000)
        print(flush=True)
        while True:
            for k in range(64):
                if store.find(k) is None or k % 2:
                    store.put(k, [bytes([k]) * 100_000] * 3)
    """)
    store = FrameStore(fd, ME, count, size)
    for turn in range(30):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        threading.Event().wait(0.0005 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        for k in range(count):
            found = store.find(k)
            assert found is None or bytes(found) == bytes([k]) * size
    assert store.there > 0
