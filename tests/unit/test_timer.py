# SPDX-License-Identifier: Apache-2.0
"""The front's timer: each alarm rings once, when it is due, and none hurts another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
import trio

from lipsync_fast.frontend.playout.timer import Alarm, SlotTimer

MS = 1_000_000


def run(act: Callable[[SlotTimer], object], seconds: float) -> None:
    """Let a timer run for so long."""

    async def main() -> None:
        timer = SlotTimer()
        act(timer)
        with trio.move_on_after(seconds):
            await timer.run()

    trio.run(main)


def test_alarms_ring_when_they_are_due_and_in_order() -> None:
    rng, rung, begun = random.Random(3), [], time.monotonic_ns()
    due = [begun + rng.randrange(100) * MS for _ in range(300)]

    def act(timer: SlotTimer) -> None:
        for number, when in enumerate(due):
            timer.alarm(lambda n=number: rung.append((n, time.monotonic_ns()))).set(when)

    run(act, 0.4)
    assert sorted(n for n, _ in rung) == list(range(300)), "each once"
    assert [due[n] for n, _ in rung] == sorted(due)
    assert all(at >= due[n] for n, at in rung), "none too early"


def test_setting_it_again_replaces() -> None:
    rung: list[str] = []

    def act(timer: SlotTimer) -> None:
        now = time.monotonic_ns()
        for name, first, then in (
            ("later", 20 * MS, 60 * MS),
            ("earlier", 500 * MS, 40 * MS),
            ("never", 20 * MS, None),
            ("past", 500 * MS, -MS),
        ):
            alarm = timer.alarm(lambda name=name: rung.append(name))
            alarm.set(now + first)
            alarm.set(None if then is None else now + then)
        closed = timer.alarm(lambda: rung.append("closed"))
        closed.set(now)
        closed.close()

    run(act, 0.3)
    assert rung == ["past", "earlier", "later"]


def test_one_that_sets_itself_again_lets_others_ring() -> None:
    counts = [0, 0]

    def act(timer: SlotTimer) -> None:
        def again(k: int) -> Callable[[], None]:
            def call() -> None:
                counts[k] += 1
                alarms[k].set(0)  # always due

            return call

        alarms: list[Alarm] = [timer.alarm(again(k)) for k in range(2)]
        for alarm in alarms:
            alarm.set(0)

    run(act, 0.1)
    assert counts[0] > 10
    assert abs(counts[0] - counts[1]) <= 1


def test_one_that_fails_is_logged_and_the_others_ring(caplog: pytest.LogCaptureFixture) -> None:
    rung: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError("a defect")

    def act(timer: SlotTimer) -> None:
        for call in (fail, lambda: rung.append(1)):
            timer.alarm(call).set(0)

    run(act, 0.05)
    assert rung == [1]
    assert "a defect" in caplog.text


def test_one_that_is_always_put_off_costs_no_memory() -> None:
    timer = SlotTimer()
    alarm = timer.alarm(lambda: None)
    for k in range(10_000):
        alarm.set((1_000_000 + k) * MS)
        timer.ring_due(k * MS)
    assert len(timer._heap) <= 2
    assert alarm.due_ns == 1_009_999 * MS
