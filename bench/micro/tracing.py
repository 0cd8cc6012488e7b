# SPDX-License-Identifier: Apache-2.0
"""What traces cost a front: the loop for each utterance and each frame, and the thread that sends.

    python bench/micro/tracing.py [--utterances 2000] [--frames 75] [--rounds 5] [--out FILE]

Each utterance is heard, has its frames asked for and sent, and ends, as a session does it, without
a trace, in one that nobody samples, and in one that is sent. Counted is the loop's processor time;
of what is sent, the rest of the process's as well, which is the thread's, with a collector on
loopback that takes all (a process of its own). Memory is what the library takes once it is loaded.
"""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from pathlib import Path

from lipsync_fast.benchmark import program
from lipsync_fast.config import Tracing as Config
from lipsync_fast.frontend.playout.playout import Ended, Flag, Picture
from lipsync_fast.frontend.session.spoken import SpokenUtterances
from lipsync_fast.frontend.statistics import FrontStatistics
from lipsync_fast.tracing import Tracing

PARENT = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
PICTURE = Picture(0, 0, 0, Flag(0), 1, None, None, 0)
WAYS = {"off": -1.0, "not sampled": 0.0, "sampled": 1.0}


def collector() -> tuple[int, str]:
    """A process that answers 200 to whatever comes; its id, and its URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces"
    pid = os.fork()
    if pid:
        listener.close()
        return pid, url
    while True:
        end, _ = listener.accept()
        with end, end.makefile("rb") as read:
            left = 0
            while (line := read.readline()).strip():
                name, _, value = line.partition(b":")
                left = int(value) if name.lower() == b"content-length" else left
            read.read(left)
            end.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def said(
    traces: Tracing | None, headers: dict[str, str], utterances: int, frames: int
) -> tuple[float, float]:
    """Seconds of the loop, and of the whole process, for all of it."""
    front = FrontStatistics()
    begin = None if traces is None else partial(traces.begin, traces.caller(headers.get))
    spoken = SpokenUtterances(front, 1, True, begin)
    whole, own = time.process_time(), time.thread_time()
    for _ in range(utterances):
        spoken.on_heard(1, "demo", 48_000, time.monotonic_ns())
        for _ in range(frames):
            spoken.on_asked("engine-1", bool)
            front.latencies.add(65.0, spoken.trace_of(PICTURE))
            spoken.on_sent(PICTURE, 65.0)
        spoken.end(Ended(1, frames=frames, dropped=0))
    own = time.thread_time() - own
    if traces is not None:
        traces.close()
    return own, time.process_time() - whole


def resident_mb() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure, in rounds in which each way has its turn."""
    asked = program.options(__doc__, utterances=2000, frames=75, rounds=5, out=None)
    os.environ |= {"OTEL_BSP_MAX_QUEUE_SIZE": str(asked.utterances)}
    pid, url = collector()
    before = resident_mb()
    Tracing(Config(endpoint=url), "front-1").close()
    memory_mb = resident_mb() - before
    rounds = []
    for _ in range(asked.rounds):
        found: dict[str, dict[str, float]] = {}
        for way, sample in WAYS.items():
            traces = None if sample < 0 else Tracing(Config(endpoint=url, sample=sample), "front-1")
            parent = PARENT if sample else {}
            own, whole = said(traces, parent, asked.utterances, asked.frames)
            each = 1e6 / asked.utterances
            found[way] = {"loop_us": own * each, "thread_us": (whole - own) * each}
        rounds.append(found)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    ways = program.medians(rounds)
    off = ways["off"]["loop_us"]
    for way, row in ways.items():
        more = row["loop_us"] - off
        print(
            f"{way:12} {row['loop_us']:7.1f} us an utterance of {asked.frames} frames in the"
            f" loop ({more:+.1f}), {row['thread_us']:6.1f} us beside it"
        )
    print(f"library      {memory_mb:7.1f} MB of memory")
    program.keep(asked.out, ways=ways, memory_mb=memory_mb)


if __name__ == "__main__":
    main()
