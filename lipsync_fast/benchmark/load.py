# SPDX-License-Identifier: Apache-2.0
"""Sessions that speak on clocks of their own, and what they note of the frames that come.

The load is open: every piece of sound has a moment at which it is due, whatever the server does,
and a frame's latency counts from the moment at which its last sample was due. So a server that
holds up its clients gains nothing by it.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from operator import lt

import numpy as np
import trio
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.audio.windows import AudioWindow, frame_count
from lipsync_fast.benchmark.speech import PIECE, frame_due_ns, piece_due_ns
from lipsync_fast.client import (
    ErrorMessage,
    Session,
    SessionError,
    SessionOverloaded,
    Stats,
    UtteranceEnded,
    VideoFrame,
)
from lipsync_fast.timing import NS_PER_S


@dataclass
class Spoken:
    """An utterance: when it began, and the frames of it that came.

    Attributes:
        begun_ns: when its first sample was due, CLOCK_MONOTONIC.
        arrivals: frame number to when it came, late ones not counted.
        came, more: messages in all, and those beyond what it has frames.
    """

    begun_ns: int
    arrivals: dict[int, int] = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    came: int = 0
    more: int = 0
    backwards: int = 0
    last: tuple[int, int] = (-1, -1)
    """Sequence number and presentation time of the newest."""
    ended: UtteranceEnded | None = None
    refused: bool = False
    """Too many others spoke: nothing is expected of it."""


@dataclass
class Sample:
    """A picture that is compared afterwards."""

    utterance: int
    frame: int
    index: int
    jpeg: bytes


@dataclass
class Notes:
    """What one session has seen."""

    number: int
    session: str = ""
    """As the server calls it."""
    utterances: list[Spoken] = field(default_factory=list)
    frames: list[tuple[int, bool]] = field(default_factory=list)
    """When each frame came, and whether it was spoken."""
    samples: list[Sample] = field(default_factory=list)
    late_at: list[int] = field(default_factory=list)
    """When frames came that stood in for late ones."""
    bytes: int = 0
    overloaded: int = 0
    skipped: int = 0
    unknown: int = 0
    """Spoken frames that could not be told which they are."""
    errors: list[str] = field(default_factory=list)
    send_lag_ms: float = 0.0
    """The most by which a piece was sent after it was due."""

    def utterance(self, number: int) -> Spoken | None:
        """The one that the server calls so: it counts those that it has not refused, from 1."""
        taken = [u for u in self.utterances if not u.refused]
        return taken[number - 1] if 0 < number <= len(taken) else None


class Talker:
    """One session: speaks the sound again and again with pauses, until told to stop.

    Args:
        number: of the session, from 0.
        url: of the server.
        avatar: its name.
        pcm: 16 kHz mono.
        pause_s: between two utterances.
        keep_every: keep one frame in so many to be compared; 0 for none.
    """

    def __init__(
        self,
        number: int,
        url: str,
        avatar: str,
        pcm: NDArray[np.int16],
        pause_s: float,
        keep_every: int,
    ) -> None:
        self.notes = Notes(number)
        self._url, self._avatar, self._pcm = url, avatar, pcm
        self._pause_ns, self._keep_every = int(pause_s * NS_PER_S), keep_every
        self._pieces = [pcm[i : i + PIECE].tobytes() for i in range(0, len(pcm), PIECE)]
        self._frames = frame_count(len(pcm))
        self._spoken = 0

    async def run(self, begin_ns: int, end_ns: int, connected: trio.Event) -> None:
        """Speak from ``begin_ns``; begin no utterance that would not end by ``end_ns``."""
        try:
            async with lipsync_fast.connect(self._url, avatar=self._avatar) as session:
                connected.set()
                self.notes.session = session.started.session
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, session)
                    await self._talk(session, begin_ns, end_ns)
                    nursery.cancel_scope.cancel()
        except SessionError as error:
            self.notes.errors.append(f"{error.code}: {error}")
        finally:
            connected.set()

    async def _talk(self, session: Session, begin_ns: int, end_ns: int) -> None:
        length_ns = piece_due_ns(len(self._pieces) - 1)
        while begin_ns + length_ns <= end_ns:
            self.notes.utterances.append(Spoken(begin_ns))
            for number, piece in enumerate(self._pieces):
                due = begin_ns + piece_due_ns(number)
                await _until(due)
                lag = (time.monotonic_ns() - due) / 1e6
                self.notes.send_lag_ms = max(self.notes.send_lag_ms, lag)
                await session.send(piece)
            await session.end_utterance()
            begin_ns += length_ns + self._pause_ns
            await _until(begin_ns)  # the last frames come in the pause
        await trio.sleep(max(0.0, 2.0 - self._pause_ns / NS_PER_S))

    async def _listen(self, session: Session) -> None:
        notes = self.notes
        async for event in session:
            now = time.monotonic_ns()
            if isinstance(event, VideoFrame):
                notes.bytes += len(event.jpeg)
                notes.frames.append((now, event.utterance > 0))
                if event.utterance:
                    self._note(event, now)
            elif isinstance(event, UtteranceEnded):
                spoken = notes.utterance(event.utterance)
                if spoken is not None:
                    spoken.ended = event
            elif isinstance(event, Stats):
                notes.skipped = event.skipped
            elif isinstance(event, SessionOverloaded):
                notes.overloaded += 1
                if notes.utterances:
                    notes.utterances[-1].refused = True
            elif isinstance(event, ErrorMessage):
                notes.errors.append(f"{event.code}: {event.message}")

    def _note(self, frame: VideoFrame, now: int) -> None:
        """The n-th message of an utterance is its frame n; the pictures compared confirm it."""
        notes = self.notes
        spoken = notes.utterance(frame.utterance)
        if spoken is None:
            notes.unknown += 1
            return
        number, spoken.came = spoken.came, spoken.came + 1
        now_at = frame.sequence, frame.pts_us
        if (number == 0) != frame.first or not all(map(lt, spoken.last, now_at)):
            spoken.backwards += 1
        spoken.last = now_at
        if number >= self._frames:
            spoken.more += 1
        elif frame.repeated:
            spoken.late.append(number)
            notes.late_at.append(now)
        else:
            spoken.arrivals[number] = now
            self._keep(frame, number)

    def _keep(self, frame: VideoFrame, number: int) -> None:
        notes = self.notes
        if self._keep_every and self._spoken % self._keep_every == notes.number % self._keep_every:
            notes.samples.append(Sample(frame.utterance, number, frame.avatar_frame, frame.jpeg))
        self._spoken += 1


async def _until(due_ns: int) -> None:
    left = due_ns - time.monotonic_ns()
    await trio.sleep(max(0, left) / NS_PER_S)


@dataclass
class Figures:
    """What the notes of all sessions come to.

    ``latencies`` is (when it came, milliseconds from its last needed sample) of every spoken frame.
    Of utterances that were ``refused``, nothing is expected.
    """

    sessions: int
    utterances: int = 0
    refused: int = 0
    expected: int = 0
    shown: int = 0
    late: int = 0
    lost: int = 0
    twice: int = 0
    out_of_order: int = 0
    unknown: int = 0
    overloaded: int = 0
    skipped: int = 0
    server_dropped: int = 0
    frames: int = 0
    megabytes: float = 0.0
    errors: list[str] = field(default_factory=list)
    latencies: list[tuple[int, float]] = field(default_factory=list)
    gaps: list[tuple[int, float]] = field(default_factory=list)
    """(when it ended, milliseconds) between two frames of a session, idle ones too."""
    late_at: list[int] = field(default_factory=list)
    send_lag_ms: float = 0.0

    def latency_ms(self) -> dict[str, float]:
        """Percentiles."""
        return percentiles([ms for _, ms in self.latencies])

    def gap_ms(self) -> dict[str, float]:
        """Percentiles."""
        return percentiles([ms for _, ms in self.gaps])


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99, p99.9 and the largest."""
    if not values:
        return {}
    found = np.percentile(np.array(values), (50, 95, 99, 99.9, 100))
    names = ("p50", "p95", "p99", "p99.9", "most")
    return {name: round(float(v), 2) for name, v in zip(names, found, strict=True)}


def figures(all_notes: list[Notes], window: AudioWindow, frames: int) -> Figures:
    """Add up what the sessions have noted; ``frames`` is what an utterance has."""
    total = Figures(sessions=len(all_notes))
    due = [frame_due_ns(k, window) for k in range(frames)]
    for notes in all_notes:
        total.unknown += notes.unknown
        total.overloaded += notes.overloaded
        total.skipped += notes.skipped
        total.frames += len(notes.frames)
        total.megabytes += notes.bytes / 1e6
        total.late_at += notes.late_at
        total.errors += [f"session {notes.number}: {e}" for e in notes.errors]
        total.send_lag_ms = max(total.send_lag_ms, notes.send_lag_ms)
        times = [at for at, _ in notes.frames]
        total.gaps += [(b, (b - a) / 1e6) for a, b in itertools.pairwise(times)]
        for spoken in notes.utterances:
            if spoken.refused:
                total.refused += 1
                continue
            total.utterances += 1
            total.expected += frames
            total.shown += len(spoken.arrivals)
            total.late += len(spoken.late)
            total.lost += max(0, frames - spoken.came)
            total.twice += spoken.more
            total.out_of_order += spoken.backwards
            total.server_dropped += spoken.ended.dropped if spoken.ended else 0
            for number, at in spoken.arrivals.items():
                total.latencies.append((at, (at - spoken.begun_ns - due[number]) / 1e6))
    total.latencies.sort()
    total.gaps.sort()
    total.megabytes = round(total.megabytes, 1)
    return total
