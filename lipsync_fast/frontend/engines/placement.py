# SPDX-License-Identifier: Apache-2.0
"""Which engine makes a session's frames.

A session gets its engine when it begins to speak: the one with the most room. It keeps it, whose
caches know its sound, until another one would be done with its next job much earlier. Room is what
an engine can make, less what its sessions need or what it makes for all fronts, whichever is more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lipsync_fast.timing import FPS

PAUSE_NS = 1_000_000_000
"""A session that has asked for nothing for so long has no engine any more."""
MORE_JOBS, MORE_S = 4, 0.04
"""A session moves when its engine has twice as much to do as the least busy one, and this: so many
jobs, or what it makes in such a time."""


class Candidate(Protocol):
    """An engine that can be given a job."""

    @property
    def name(self) -> str:
        """A name that this engine alone has."""

    @property
    def capacity(self) -> float:
        """Frames a second that it can make; more than 0."""

    @property
    def frames_per_s(self) -> float:
        """Frames a second that it makes now, for all fronts."""

    @property
    def backlog(self) -> int:
        """Jobs that it owes to this front."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def wait_s(engine: Candidate) -> float:
    """When an engine would be done with one more job."""
    return (engine.backlog + 1) / engine.capacity


@dataclass(slots=True)
class _Placed:
    engine: str
    asked_ns: int


class StreamPlacement:
    """The engines that encode streams: each keeps its own while that works, for what its encoder
    has made; a new one goes where the fewest are."""

    def __init__(self) -> None:
        self._placed: dict[int, str] = {}

    def choose(self, able: Sequence[AnyCandidate], stream: int) -> AnyCandidate:
        """Where the next picture of a stream is encoded; ``able``: at least one."""
        name = self._placed.get(stream)
        own = next((engine for engine in able if engine.name == name), None)
        if own is None:
            streams = Counter(self._placed.values())
            own = min(able, key=lambda engine: streams[engine.name] / engine.capacity)
            self._placed[stream] = own.name
        return own

    def forget(self, stream: int) -> str:
        """A stream has ended; the name of its engine, "" where it had none."""
        return self._placed.pop(stream, "")


class Placement:
    """The engines of all sessions of a front. No clock is read here, and nothing is sent."""

    def __init__(self) -> None:
        self._placed: dict[int, _Placed] = {}

    def choose(self, able: Sequence[AnyCandidate], session: int, now_ns: int) -> AnyCandidate:
        """Where the next job of a session is to be done.

        Args:
            able: engines that can do it; at least one.
            session: its number; 0 for a job of none, which goes where it is done first.
            now_ns: of a clock that does not go back.
        """
        best = able[0] if len(able) == 1 else min(able, key=wait_s)
        if session == 0:
            return best
        placed = self._placed.get(session)
        own = next((e for e in able if placed is not None and e.name == placed.engine), None)
        if placed is None or own is None or now_ns - placed.asked_ns > PAUSE_NS:
            best = self._with_most_room(able, own, now_ns)
        elif wait_s(own) <= 2 * wait_s(best) + max(MORE_JOBS / own.capacity, MORE_S):
            best = own
        if placed is None:
            self._placed[session] = _Placed(best.name, now_ns)
        else:
            placed.engine, placed.asked_ns = best.name, now_ns
        return best

    def forget(self, session: int) -> None:
        """A session has ended."""
        self._placed.pop(session, None)

    def _with_most_room(
        self, able: Sequence[AnyCandidate], own: AnyCandidate | None, now_ns: int
    ) -> AnyCandidate:
        """For a session that begins to speak; its own engine, where that is as good."""
        speaking = Counter(
            placed.engine
            for placed in self._placed.values()
            if now_ns - placed.asked_ns <= PAUSE_NS
        )

        def room(engine: AnyCandidate) -> tuple[float, bool, float]:
            needed = max(FPS * speaking[engine.name], engine.frames_per_s)
            return (engine.capacity - needed) // FPS, engine is own, -wait_s(engine)

        return max(able, key=room)
