# SPDX-License-Identifier: Apache-2.0
"""What the engine's loop costs a job: taken, ordered by deadline, begun, answered.

    python bench/micro/batcher.py [--jobs 4000] [--rounds 5] [--out FILE]

The loop runs with a backend that has every picture at once (60 kB, always the same), so that all
time is the loop's own. Jobs of four sessions lie in the ring, as many as are given at a time.
Counted is processor time for each job, the answer's way back and its reading included. The floor:
the same records through the same rings, read and answered with nothing in between.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from instant import JPEG, Instant

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.engine.scheduler import Scheduler
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Job, Look, Status, read_answer, read_job, try_send
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter

AT_A_TIME = (1, 8, 64)
SESSIONS = 4
FAR_NS = 1 << 61


class Rings:
    """Both rings between two ends in this process, and the front's sides of them."""

    def __init__(self) -> None:
        self.handles = RingHandle.create(1 << 24, 1), RingHandle.create(1 << 24, 1)
        self.jobs, self.answers = RingWriter(self.handles[0]), RingReader(self.handles[1])

    def theirs(self) -> list[RingHandle]:
        """As they come over a socket."""
        return [RingHandle(*(os.dup(fd) for fd in h.fds), h.generation) for h in self.handles]

    def put(self, records: list[tuple[Job, memoryview]]) -> None:
        """Jobs in."""
        for job, pcm in records:
            if not try_send(self.jobs, job, pcm):
                raise SystemExit("the ring is full")

    def take(self) -> int:
        """Answers out; how many."""
        count = 0
        while (record := self.answers.next()) is not None:
            read_answer(record)
            self.answers.release()
            count += 1
        return count


def records(package: AvatarPackage, count: int) -> list[tuple[Job, memoryview]]:
    """Jobs of sounds that the engine knows after the first ones."""
    window = package.manifest.audio
    made = []
    for number in range(count):
        session = number % SESSIONS + 1
        sound = Utterance(session, window)
        sound.push(np.zeros(16_000, np.float32))
        speech, pcm = sound.speech(3)
        deadline = FAR_NS - number
        job = Job(session, 0, number + 1, "demo", number % 100, deadline, Look(), speech)
        made.append((job, memoryview(pcm).cast("B")))
    return made


def loop(path: Path, jobs: int, at_a_time: int) -> float:
    """Microseconds a job through the engine's loop."""
    engine, rings = Scheduler(Instant(), FrameEncoder()), Rings()
    engine.registry.load("demo", path)
    engine.fronts.attach("front-1", *rings.theirs())
    package = engine.registry.avatars["demo"].package
    some = records(package, at_a_time)
    for job, _ in some:  # as it is after some seconds
        engine.encoder.prepare(package, job.avatar_frame)

    def turn() -> None:
        rings.put(some)
        left = at_a_time
        while left:
            engine.step()
            left -= rings.take()

    found = timed(turn, jobs, at_a_time)
    engine.close()
    return found


def floor(path: Path, jobs: int, at_a_time: int) -> float:
    """Microseconds a job through the rings alone."""
    rings = Rings()
    reader, writer = RingReader(rings.handles[0]), RingWriter(rings.handles[1])
    with AvatarPackage.open(path) as package:
        some = records(package, at_a_time)

    def turn() -> None:
        rings.put(some)
        while (record := reader.next()) is not None:
            job, _ = read_job(record)
            reader.release()
            box = Rect(0, 0, 1280, 720)
            try_send(writer, Answer(job.session, job.epoch, job.number, Status.MADE, box), JPEG)
        if rings.take() != at_a_time:
            raise SystemExit("answers are missing")

    return timed(turn, jobs, at_a_time)


def timed(turn: Callable[[], None], jobs: int, at_a_time: int) -> float:
    """Microseconds of processor time a job."""
    turns = max(1, jobs // at_a_time)
    for _ in range(max(2, turns // 10)):
        turn()
    begun = time.process_time()
    for _ in range(turns):
        turn()
    return (time.process_time() - begun) / (turns * at_a_time) * 1e6


def main() -> None:
    """Measure and print."""
    args = program.options(__doc__, jobs=4000, rounds=5, out=None)
    path = AvatarLibrary().find("demo")
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(args.rounds):
        for at_a_time in AT_A_TIME:
            values = found.setdefault(f"{at_a_time} at a time", {"loop": [], "rings alone": []})
            values["loop"].append(round(loop(path, args.jobs, at_a_time), 2))
            values["rings alone"].append(round(floor(path, args.jobs, at_a_time), 2))
    for name, values in found.items():
        a, b = (statistics.median(values[k]) for k in ("loop", "rings alone"))
        print(f"{name:14s} {a:6.1f} us a job, {b:6.1f} of it the rings ({a / b:.1f}x)")
    program.keep(args.out, size=len(JPEG), us_per_job=found)


if __name__ == "__main__":
    main()
