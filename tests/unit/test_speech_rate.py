# SPDX-License-Identifier: Apache-2.0
"""When those that speak are shown every second picture, in simulated time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from lipsync_fast.frontend.playout.speech_rate import (
    CALM_S,
    LOOK_S,
    MOST_CALM_S,
    SLOW,
    SpeechRate,
)

MS = 1_000_000
MOST = 400 * MS


@dataclass
class Server:
    """Sessions that speak, and engines that make so much."""

    speaking: int = 2
    others: int = 0
    capacity: float = 150.0
    latency_ns: float = 30 * MS
    now: float = 100.0
    seen: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rate = SpeechRate(
            lambda: self.latency_ns,
            MOST,
            lambda: (self.speaking, self.others),
            lambda: self.capacity,
            lambda: self.now,
        )

    def run(self, seconds: float) -> list[int]:
        out = []
        for _ in range(round(seconds / LOOK_S)):
            self.now += LOOK_S
            self.rate.measure()
            out.append(self.rate.stride)
            if not self.seen or self.seen[-1][1] != self.rate.stride:
                self.seen.append((self.now, self.rate.stride))
        return out


def test_with_room_for_all_all_are_shown() -> None:
    server = Server(speaking=5)
    assert set(server.run(60)) == {1}


def test_it_falls_at_once_where_engines_make_less_than_is_spoken() -> None:
    server = Server(speaking=2)
    server.run(10)
    server.capacity = 40.0
    assert set(server.run(30)) == {2}
    server.capacity = 52.0
    assert set(server.run(60)) == {2}, "just enough is not enough to come back"
    server.capacity = 150.0
    assert server.run(CALM_S + 1)[-1] == 1


def test_those_of_other_fronts_count() -> None:
    server = Server(speaking=1, others=2, capacity=60.0)
    assert set(server.run(5)) == {2}


def test_it_falls_before_pictures_are_late() -> None:
    """Also where no engine says that it is slow."""
    server = Server()
    server.latency_ns = SLOW * MOST + 1
    assert set(server.run(10)) == {2}
    server.latency_ns = MOST / 2
    assert set(server.run(10)) == {2}
    server.latency_ns = 30 * MS
    assert server.run(2 * CALM_S + 1)[-1] == 1


def test_who_does_not_speak_and_engines_that_are_gone_say_nothing() -> None:
    server = Server(speaking=0, capacity=10.0, latency_ns=MOST)
    assert set(server.run(10)) == {1}
    server = Server(capacity=0.0, latency_ns=MOST)
    assert set(server.run(10)) == {1}


def test_it_does_not_swing() -> None:
    """Where all pictures are too many each time, they are tried ever more seldom."""
    server = Server()
    for _ in range(round(400 / LOOK_S)):
        server.latency_ns = 350 * MS if server.rate.stride == 1 else 30 * MS
        server.run(LOOK_S)
    eased = [at for at, stride in server.seen[1:] if stride == 1]
    pauses = [b - a for a, b in itertools.pairwise(eased)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= MOST_CALM_S
