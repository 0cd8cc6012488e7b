# SPDX-License-Identifier: Apache-2.0
"""The ring against other ways from one process to another: one-way latency and throughput.

    python bench/micro/ring.py [--count 1000] [--rounds 5] [--out FILE]

A child process takes what this one sends. Latency: a record each 2 ms, from just before it is
written to when the reader has it, both on CLOCK_MONOTONIC; with a reader that sleeps before each,
and with one that looks again and again, as one does that is busy anyway. Throughput: as many as go
through. Each way in turn, round after round.

Floor of the latency: what waking a sleeping process costs here (measured: an eventfd alone), and
copying the bytes once at the speed of memory (measured: numpy's copy). Floor of the throughput: one
copy of the bytes.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import select
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq

from lipsync_fast.benchmark import program
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter

SIZES = {"job, 100 B": 100, "frame, 60 kB": 60_000}
PACE_S = 0.002
STAMP = struct.Struct("<q")
LAST = -1
PHASES = ("asleep", "many", "awake")
Send = Callable[[bytearray], None]
Receive = Callable[[bool], memoryview | bytes]
"""The next record; asks without sleeping when told to."""


# Each way: (what the child needs, how this process sends, how the child makes its receive).
def ring() -> tuple[Any, Send]:
    """Ours."""
    handle = RingHandle.create(1 << 22, 1)
    writer = RingWriter(handle)

    def send(data: bytearray) -> None:
        while (view := writer.try_reserve(len(data))) is None:
            time.sleep(0)
        view[:] = data
        del view
        writer.commit(len(data))

    return handle, send


def ring_receive(handle: RingHandle) -> Receive:
    reader = RingReader(handle)
    held = False

    def receive(awake: bool) -> memoryview:
        nonlocal held
        if held:
            reader.release()
        held = True
        record = reader.next() if awake else reader.wait(10.0)
        while record is None:
            record = reader.next()
        return record

    return receive


def zeromq() -> tuple[Any, Send]:
    """ZeroMQ over an ipc socket, PUSH to PULL."""
    path = f"ipc://{tempfile.mkdtemp()}/socket"
    end = zmq.Context.instance().socket(zmq.PUSH)
    end.bind(path)
    return path, lambda data: end.send(data, copy=True)


def zeromq_receive(path: str) -> Receive:
    end = zmq.Context().socket(zmq.PULL)
    end.connect(path)

    def receive(awake: bool) -> bytes:
        while awake:
            try:
                return end.recv(zmq.NOBLOCK)
            except zmq.Again:
                pass
        return end.recv()

    return receive


def pipe() -> tuple[Any, Send]:
    """multiprocessing.Pipe."""
    theirs, ours = mp.Pipe(duplex=False)
    return theirs, ours.send_bytes


def pipe_receive(end: Connection) -> Receive:
    def receive(awake: bool) -> bytes:
        while awake and not end.poll(0):
            pass
        return end.recv_bytes()

    return receive


def unix_socket() -> tuple[Any, Send]:
    """A Unix stream socket with a length before each record."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def send(data: bytearray) -> None:
        ours.sendall(STAMP.pack(len(data)) + data)

    return theirs, send


def unix_receive(end: socket.socket) -> Receive:
    buffer = bytearray(1 << 20)

    def receive(awake: bool) -> memoryview:
        while awake:
            try:
                end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                pass
        size = STAMP.unpack(end.recv(STAMP.size, socket.MSG_WAITALL))[0]
        view, at = memoryview(buffer)[:size], 0
        while at < size:
            at += end.recv_into(view[at:])
        return view

    return receive


WAYS: dict[str, tuple[Callable[[], tuple[Any, Send]], Callable[[Any], Receive]]] = {
    "ring": (ring, ring_receive),
    "ZeroMQ ipc": (zeromq, zeromq_receive),
    "multiprocessing.Pipe": (pipe, pipe_receive),
    "Unix socket": (unix_socket, unix_receive),
}


def child(make: Callable[[Any], Receive], needs: Any, results: Connection) -> None:
    """In each phase, receive until its last record; tell latencies, and the time in all."""
    receive = make(needs)
    results.send("ready")
    for phase in PHASES * len(SIZES):
        took: list[int] = []
        first = 0
        while True:
            record = receive(phase == "awake")
            now = time.monotonic_ns()
            stamp = STAMP.unpack_from(record)[0]
            del record
            if stamp < 0:
                break
            first = first or now
            took.append(now - stamp)
        results.send((took, now - first))


def measure(way: str, count: int) -> dict[str, dict[str, float]]:
    """One round of one way, all sizes."""
    make, make_receive = WAYS[way]
    needs, send = make()
    here, there = mp.Pipe()
    process = mp.get_context("fork").Process(target=child, args=(make_receive, needs, there))
    process.start()
    assert here.recv() == "ready"
    time.sleep(0.1)
    found = {}
    for name, size in SIZES.items():
        data = bytearray(size)

        def stamped(stamp: int, data: bytearray = data) -> None:
            STAMP.pack_into(data, 0, stamp)
            send(data)

        def paced() -> list[float]:
            due = time.monotonic()
            for _ in range(count):
                due += PACE_S
                time.sleep(max(0.0, due - time.monotonic()))
                stamped(time.monotonic_ns())
            stamped(LAST)
            us = np.array(here.recv()[0]) / 1e3
            return [round(float(v), 2) for v in np.percentile(us, (50, 99, 99.9))]

        p50, p99, p999 = paced()
        many = max(2000, min(200_000, 400_000_000 // size) // 4)
        for _ in range(many):
            stamped(time.monotonic_ns())
        stamped(LAST)
        _, lasted = here.recv()
        awake, awake99, _ = paced()
        found[name] = {
            "p50_us": p50,
            "p99_us": p99,
            "p99.9_us": p999,
            "awake_p50_us": awake,
            "awake_p99_us": awake99,
            "records_per_s": round(many / (lasted / 1e9)),
            "mb_per_s": round(many * size / lasted * 1e3, 1),
        }
    process.join(10)
    return found


def wake_us(count: int) -> float:
    """Median one-way time of an eventfd that wakes a sleeping process."""
    bell = os.eventfd(0, os.EFD_SEMAPHORE)
    here, there = mp.Pipe()

    def listen() -> None:
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        times = []
        there.send("ready")
        for _ in range(count):
            poll.poll()
            times.append(time.monotonic_ns())
            os.eventfd_read(bell)
        there.send(times)

    process = mp.get_context("fork").Process(target=listen)
    process.start()
    here.recv()
    rung = []
    for _ in range(count):
        time.sleep(PACE_S)
        rung.append(time.monotonic_ns())
        os.eventfd_write(bell, 1)
    heard = here.recv()
    process.join(10)
    return statistics.median((b - a) / 1e3 for a, b in zip(rung, heard, strict=True))


def copy_us(size: int) -> float:
    """Median time of one copy."""
    a, b = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    took = []
    for _ in range(2000):
        begun = time.perf_counter_ns()
        np.copyto(b, a)
        took.append(time.perf_counter_ns() - begun)
    return statistics.median(took) / 1e3


def main() -> None:
    """Measure and print."""
    args = program.options(__doc__, count=1000, rounds=5, out=None)
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            rounds[way].append(measure(way, args.count))
    floor = {
        "wake_us": round(wake_us(args.count), 2),
        "copy_us": {name: round(copy_us(size), 2) for name, size in SIZES.items()},
    }
    medians = {way: program.medians(found) for way, found in rounds.items()}
    for name in SIZES:
        print(f"{name}: floor {floor['wake_us']} us to wake, {floor['copy_us'][name]} us to copy")
        for way, found in medians.items():
            f = found[name]
            ratio = statistics.median(
                r[name]["p50_us"] / ours[name]["p50_us"]
                for r, ours in zip(rounds[way], rounds["ring"], strict=True)
            )
            awake = f"awake {f['awake_p50_us']:7.2f}, p99 {f['awake_p99_us']:7.2f}"
            print(
                f"  {way:22s} p50 {f['p50_us']:8.2f} us ({ratio:4.1f} x ring)   p99 "
                f"{f['p99_us']:8.2f}   p99.9 {f['p99.9_us']:8.2f}   {awake}   "
                f"{f['records_per_s']:9.0f}/s {f['mb_per_s']:8.1f} MB/s"
            )
    program.keep(args.out, floor=floor, medians=medians, rounds=rounds)


if __name__ == "__main__":
    main()
