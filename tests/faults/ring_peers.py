# SPDX-License-Identifier: Apache-2.0
"""Two processes on one ring, one of which is killed at random, again and again.

    python ring_peers.py KILLS SEED        # a writer and a reader, killed
    python ring_peers.py --pass RECORDS    # a writer and a reader, left in peace

Record n says its number, and has a length and bytes that follow from it. Before a side moves its
cursor it notes what it is about to do in a journal; its successor tells by the cursor whether that
was done. So the reader must see every number once: none torn, none lost, none again. Exit status 0
when that held; what was seen instead is printed.

A note may be cut short by the kill, too. So there are two places for it, and one byte, which cannot
be written by half, says which of them holds.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time

from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter

CAPACITY, CALM_CAPACITY = 1 << 14, 1 << 16
"""One is full most of the time; in the other, two sides in peace wait less for each other."""
GENERATION = 9
NOTE = struct.Struct("<QQ")
"""A side's record number and the cursor before it."""
WRITER_AT, READER_AT, STOP_AT, BEGUN_AT = 0, 64, 128, 192
HOLDS_AT = 2 * NOTE.size
"""Behind a side's two places: which one holds."""


def note(journal: mmap.mmap, at: int, number: int, cursor: int) -> None:
    other = 1 - journal[at + HOLDS_AT]
    NOTE.pack_into(journal, at + other * NOTE.size, number, cursor)
    journal[at + HOLDS_AT] = other


def noted(journal: mmap.mmap, at: int) -> tuple[int, int]:
    number, cursor = NOTE.unpack_from(journal, at + journal[at + HOLDS_AT] * NOTE.size)
    return number, cursor


def moved(journal: mmap.mmap, at: int, cursor: int) -> int:
    """How many records a side has done with, given where its cursor stands."""
    number, before = noted(journal, at)
    return number + (cursor > before)


def record(number: int) -> bytes:
    size = number * 2654435761 % 2999
    return struct.pack("<Q", number) + bytes([number % 251]) * size


def write_forever(handle: RingHandle, journal: mmap.mmap, last: int | None) -> None:
    writer = RingWriter(handle)
    number = moved(journal, WRITER_AT, writer.position)
    journal[BEGUN_AT] = 1
    while last is None or number < last:
        if journal[STOP_AT]:
            break
        data = record(number)
        view = writer.reserve(len(data), 0.2)
        if view is None:
            continue
        view[:] = data
        note(journal, WRITER_AT, number, writer.position)
        writer.commit(len(data))
        number += 1


def read_forever(handle: RingHandle, journal: mmap.mmap, last: int | None) -> None:
    reader = RingReader(handle)
    number = moved(journal, READER_AT, reader.position)
    journal[BEGUN_AT + 1] = 1
    while last is None or number < last:
        view = reader.wait(0.2)
        if view is None:
            if journal[STOP_AT]:
                break
            continue
        if bytes(view) != record(number):
            found = struct.unpack_from("<Q", view)[0] if len(view) >= 8 else None
            print(f"expected record {number}, found {found} of {len(view)} bytes", flush=True)
            os._exit(1)
        note(journal, READER_AT, number, reader.position)
        reader.release()
        number += 1


def start(side: object, *arguments: object) -> int:
    """A child process that runs a side; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        side(*arguments)  # type: ignore[operator]
    except BaseException as error:
        print(f"{side}: {error!r}", flush=True)
        os._exit(2)
    os._exit(0)


def ended_well(pid: int) -> bool:
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status) == 0


def main() -> int:
    peaceful = sys.argv[1] == "--pass"
    capacity = CALM_CAPACITY if peaceful else CAPACITY
    handle, journal = RingHandle.create(capacity, GENERATION), mmap.mmap(-1, 4096)
    last = int(sys.argv[2]) if peaceful else None
    sides = [write_forever, read_forever]
    pids = [start(side, handle, journal, last) for side in sides]
    if peaceful:
        return 0 if [ended_well(pid) for pid in pids] == [True, True] else 1
    kills, rng = int(sys.argv[1]), random.Random(int(sys.argv[2]))
    for _ in range(kills):
        k = rng.randrange(2)
        deadline = time.monotonic() + 60
        while not journal[BEGUN_AT + k] and time.monotonic() < deadline:
            time.sleep(0.0001)
        time.sleep(rng.expovariate(1 / 0.001))
        journal[BEGUN_AT + k] = 0
        os.kill(pids[k], signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pids[k], 0)[1]) != -signal.SIGKILL:
            print("a side had ended by itself", flush=True)
            os.kill(pids[1 - k], signal.SIGKILL)
            return 1
        pids[k] = start(sides[k], handle, journal, None)
    journal[STOP_AT] = 1
    good = [ended_well(pid) for pid in pids] == [True, True]
    written = moved(journal, WRITER_AT, RingWriter(handle).position)
    read = moved(journal, READER_AT, RingReader(handle).position)
    print(f"{kills} kills, {written} records written, {read} read", flush=True)
    return 0 if good and written == read else 1


if __name__ == "__main__":
    sys.exit(main())
