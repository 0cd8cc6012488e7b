# SPDX-License-Identifier: Apache-2.0
"""How fast an engine is now: by what frames take, with a backend that sleeps instead of working."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.engine.speed import LEAST_LOOKS, LOOKS, RISE_S, TOLERANCE, Speed

BEAT_S = 0.25


class Machine:
    """An engine of two threads that has measured 100 frames a second."""

    def __init__(self, threads: int | None = 2) -> None:
        self.speed = Speed(100.0, threads)
        self.now = self.work_s = 0.0
        self.frames = 0

    def run(self, seconds: float, slower: float = 1.0, frames_per_s: float = 50.0) -> list[float]:
        """So many frames are asked for, and each takes so many times what was measured."""
        out = []
        for _ in range(round(seconds / BEAT_S)):
            self.now += BEAT_S
            made = round(frames_per_s * BEAT_S)
            self.frames += made
            self.work_s += made * slower * 2 / 100
            self.speed.look(self.now, self.frames, self.work_s)
            out.append(self.speed.now)
        return out


def test_as_measured_it_is_what_was_measured() -> None:
    machine = Machine()
    assert set(machine.run(20.0)) == {1.0}
    assert set(machine.run(20.0, slower=0.97 * TOLERANCE)) == {1.0}
    assert set(machine.run(5.0, slower=0.5)) == {1.0}, "never more than measured"


@pytest.mark.parametrize("frames_per_s", [12.0, 25.0, 80.0])
def test_it_follows_what_frames_take_however_few(frames_per_s: float) -> None:
    machine = Machine()
    machine.run(10.0, frames_per_s=frames_per_s)
    fell = machine.run(2.0, 2.5, frames_per_s)
    assert fell[-1] == pytest.approx(0.4)
    assert fell[LOOKS // 2] == pytest.approx(0.4), "within some second"
    machine.run(60.0, 2.5, frames_per_s)
    assert machine.speed.now == pytest.approx(0.4)


def test_it_comes_back_slower_than_it_fell() -> None:
    machine = Machine()
    machine.run(5.0, slower=5.0)
    assert machine.speed.now == pytest.approx(0.2)
    rose = machine.run(RISE_S + 2)
    assert rose[-1] == 1.0
    assert all(b - a <= BEAT_S / RISE_S + 1e-9 for a, b in itertools.pairwise(rose))
    machine.run(5.0, slower=5.0)
    rose = machine.run(RISE_S + 2, frames_per_s=0)
    assert rose[-1] == 1.0, "what nobody has seen for long is not believed"


def test_one_slow_moment_says_nothing() -> None:
    machine = Machine()
    machine.run(5.0)
    assert set(machine.run(BEAT_S, slower=20.0)) == {1.0}
    assert set(machine.run(5.0)) == {1.0}


def test_frames_that_take_longer_than_a_look_count() -> None:
    machine = Machine()
    for k in range(40):
        machine.now += BEAT_S
        machine.work_s += 2 * BEAT_S
        machine.frames += 2 * (k % 2)  # two threads, half a second each
        machine.speed.look(machine.now, machine.frames, machine.work_s)
    assert machine.speed.now == pytest.approx(0.04)


def test_what_is_made_without_threads_is_not_followed() -> None:
    machine = Machine(None)
    assert set(machine.run(20.0, slower=9.0)) == {1.0}
    machine = Machine()
    machine.speed = Speed(0.0, 2)
    assert set(machine.run(20.0, slower=9.0)) == {1.0}


def test_few_looks_are_too_few() -> None:
    machine = Machine()
    assert set(machine.run(BEAT_S * (LEAST_LOOKS - 1), slower=9.0)) == {1.0}


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_work_is_counted_by_the_clock_and_once() -> None:
    """Waiting for a processor, here asleep, is part of how long a frame takes."""
    cpu_time = CpuTime()

    def frame() -> None:
        with cpu_time.on("decoder"):
            time.sleep(0.02)
            with cpu_time.on("compose"):
                time.sleep(0.03)

    in_threads(2, frame)
    assert cpu_time.work_s >= 0.1
    assert cpu_time.seconds["decoder"] < 0.02
    decoder, compose = cpu_time.stages["decoder"], cpu_time.stages["compose"]
    assert sum(decoder.counts.values()) == sum(compose.counts.values()) == 2
    assert decoder.sum_s >= 0.04, "a part that is asleep takes its time, too"
    assert compose.sum_s >= 0.06
    assert decoder.sum_s + compose.sum_s == pytest.approx(cpu_time.work_s, rel=0.1)

    def other() -> None:
        for what in ("jobs in", "image half", "avatar's frame"):  # not of every frame
            with cpu_time.on(what):
                time.sleep(0.01)

    before = cpu_time.work_s
    in_threads(1, other)
    assert set(cpu_time.stages) == {"decoder", "compose"}
    assert cpu_time.work_s == before

    def outer() -> None:
        with cpu_time.on("jobs in"), cpu_time.on("mel"):
            time.sleep(0.05)

    in_threads(1, outer)
    assert cpu_time.work_s - before >= 0.05
