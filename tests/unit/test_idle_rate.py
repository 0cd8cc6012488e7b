# SPDX-License-Identifier: Apache-2.0
"""How often sessions that rest are shown, in simulated time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from lipsync_fast.frontend.playout.idle_rate import (
    CALM_S,
    LOOK_S,
    MOST_CALM_S,
    MOST_STRIDE,
    IdleRate,
)

MS = 1_000_000


@dataclass
class World:
    """A front that uses so much of a processor, more the more pictures it shows."""

    speech: float = 0.075
    rest: float = 0.0
    latency_ns: float = 20 * MS
    speaking: int = 3
    may_speak: int = 3
    sessions: int = 20
    now: float = 100.0
    used: float = 0.0
    seen: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rate = IdleRate(
            0.2,
            lambda: self.latency_ns,
            lambda: (self.speaking, self.may_speak, self.sessions),
            lambda: self.used,
            lambda: self.now,
        )

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self.now += LOOK_S
            self.used += LOOK_S * (self.speech + self.rest / self.rate.stride)
            self.rate.measure()
            if not self.seen or self.seen[-1][1] != self.rate.stride:
                self.seen.append((self.now, self.rate.stride))


def test_with_little_to_do_everybody_is_shown_at_full_rate() -> None:
    world = World(rest=0.05)
    world.run(60)
    assert world.seen == [(100.0 + LOOK_S, 1)]


def test_many_that_rest_are_shown_less_often_until_they_fit() -> None:
    world = World(rest=0.15)
    world.run(30)
    assert [stride for _, stride in world.seen] == [1, 2], "0.175 of 0.2: all of them would not fit"
    world.rest = 0.3
    world.run(30)
    assert world.rate.stride == MOST_STRIDE
    world.rest = 50.0
    world.run(30)
    assert world.rate.stride == MOST_STRIDE, "one picture in four is always shown"
    world.rest = 0.0
    world.speech = 0.02
    world.run(2 * CALM_S + 1)
    assert world.rate.stride == 1


def test_slow_engines_count_while_somebody_speaks() -> None:
    world = World(latency_ns=60 * MS, sessions=5)
    world.run(10)
    assert world.rate.stride == 1, "two that rest do not make engines slow"
    world.sessions = 20
    world.run(1)
    assert world.rate.stride == MOST_STRIDE
    world.speaking = 0  # what was measured last says nothing any more
    world.speech = 0.01
    world.run(2 * CALM_S + 1)
    assert world.rate.stride == 1


def test_it_does_not_swing() -> None:
    """Where more pictures are too many each time, they are tried ever more seldom."""
    world = World(speech=0.05)
    for _ in range(round(300 / LOOK_S)):
        world.latency_ns = 60 * MS if world.rate.stride == 1 else 20 * MS
        world.run(LOOK_S)
    eased = [at for at, stride in world.seen if stride == 1]
    pauses = [b - a for a, b in itertools.pairwise(eased[1:])]
    assert pauses[0] < 12
    assert pauses[-1] > MOST_CALM_S
    assert pauses == sorted(pauses)


def test_what_is_done_once_is_no_pressure() -> None:
    """A session that begins, or a look into a folder."""
    world = World()
    for _ in range(20):
        world.used += 0.06
        world.run(2.0)
    assert [stride for _, stride in world.seen] == [1]


def test_many_that_come_at_once_are_seen_at_once() -> None:
    world = World()
    world.run(5.0)
    world.rest = 0.9
    world.run(2 * LOOK_S)
    assert world.rate.stride > 1
    world.run(2 * LOOK_S)
    assert world.rate.stride == MOST_STRIDE
