# SPDX-License-Identifier: Apache-2.0
"""A session's utterances, each from its first sound to its end: how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lipsync_fast.frontend.playout.playout import Ended, Flag, Picture
from lipsync_fast.frontend.statistics import FrontStatistics
from lipsync_fast.logs import get_logger
from lipsync_fast.timing import SAMPLE_RATE
from lipsync_fast.tracing import UtteranceSpan, Value

BeginSpan = Callable[[int, Mapping[str, Value]], UtteranceSpan]
log = get_logger("lipsync.front")


@dataclass(slots=True)
class Spoken:
    """An utterance that is being said.

    Attributes:
        avatar: that is shown; session: its number.
        begun_ns: when its first sound was here, CLOCK_MONOTONIC.
        span: follows it; None where it is not traced.
        samples: of its sound that have come, 16 kHz.
        pictures: of it that the transport has taken.
        late: slots that showed the last picture again; skipped: pictures that were left out since
            the client reads slowly.
        first_ms: from its first sound to its first picture on the socket; slowest_ms: from a
            frame's last sound to its picture on the socket, the longest.
        engines: that were asked for its frames, in this order; engine: that was asked last,
            nothing where that has gone.
    """

    number: int
    session: int
    avatar: str
    begun_ns: int
    span: UtteranceSpan | None = None
    samples: int = 0
    pictures: int = 0
    late: int = 0
    skipped: int = 0
    first_ms: float | None = None
    slowest_ms: float = 0.0
    engines: dict[str, None] = field(default_factory=dict)
    engine: str = ""


class SpokenUtterances:
    """Follows the utterances of one session.

    Args:
        session: its number.
        paced: its pictures have moments; the first ones' count for the front's figures.
        begin_span: see ``Tracing.begin``; None where nothing is traced.
    """

    def __init__(
        self,
        front: FrontStatistics,
        session: int,
        paced: bool,
        begin_span: BeginSpan | None = None,
    ) -> None:
        self._front, self._session, self._paced = front, session, paced
        self._begin_span = begin_span
        self._spoken: dict[int, Spoken] = {}

    def on_heard(self, number: int, avatar: str, samples: int, now_ns: int) -> None:
        """Sound of an utterance has come, which begins with the first of it."""
        spoken = self._spoken.get(number)
        if spoken is None:
            spoken = self._spoken[number] = Spoken(number, self._session, avatar, now_ns)
            spoken.span = self._span_of(spoken)
        spoken.samples += samples

    def _span_of(self, spoken: Spoken) -> UtteranceSpan | None:
        if self._begin_span is None:
            return None
        known: dict[str, Value] = {
            "session": spoken.session,
            "utterance": spoken.number,
            "avatar": spoken.avatar,
            "pace": "live" if self._paced else "burst",
        }
        return self._begin_span(spoken.begun_ns, known)

    def on_asked(self, engine: str, lives: Callable[[str], bool]) -> None:
        """An engine was asked for a frame; ``lives``: of the one before, which may owe nothing."""
        if self._begin_span is None:  # spans alone tell of engines
            return
        for spoken in self._spoken.values():
            if spoken.engine != engine:
                if not lives(spoken.engine):
                    self._lose(spoken)
                spoken.engines[engine], spoken.engine = None, engine

    def on_lost(self) -> None:
        """The engine that was asked for a frame has gone, or there is none to ask."""
        for spoken in self._spoken.values():
            self._lose(spoken)

    def _lose(self, spoken: Spoken) -> None:
        if spoken.engine and spoken.span is not None:
            spoken.span.happened("engine lost")
        spoken.engine = ""

    def trace_of(self, picture: Picture) -> str:
        """The trace of what a picture shows; nothing where it is in none."""
        spoken = self._spoken.get(picture.utterance)
        return spoken.span.trace_id if spoken is not None and spoken.span is not None else ""

    def on_shown(self, picture: Picture) -> None:
        """A picture's turn has come."""
        spoken = self._spoken.get(picture.utterance)
        if spoken is not None and picture.frame is not None:
            spoken.late += bool(picture.flags & Flag.REPEATED)

    def on_sent(self, picture: Picture, latency_ms: float) -> None:
        """The transport has taken a picture of what is spoken, so long after its last sound."""
        spoken = self._spoken.get(picture.utterance)
        if spoken is None:
            return
        spoken.pictures += 1
        spoken.slowest_ms = max(spoken.slowest_ms, latency_ms)
        if spoken.first_ms is None:
            spoken.first_ms = (time.monotonic_ns() - spoken.begun_ns) / 1e6
            if self._paced:
                self._front.first_picture.add(spoken.first_ms / 1e3, self.trace_of(picture))

    def on_left_out(self, pictures: int) -> None:
        """The client reads too slowly: so many were left out, of what is said now."""
        spoken = next(iter(self._spoken.values()), None)
        if spoken is not None:
            spoken.skipped += pictures

    def end(self, event: Ended) -> None:
        """The last picture's turn has come."""
        spoken = self._spoken.pop(event.utterance, None)
        if spoken is not None:
            failed = 0 < event.dropped == event.frames - event.left_out
            failure = "none of its frames was made in time" if failed else ""
            self._tell(spoken, "quiet" if event.quiet else "end", event, failure)

    def break_off(self, why: str, failure: str = "") -> None:
        """All that is being said ends here; by a failure, where one is named."""
        while self._spoken:
            self._tell(self._spoken.pop(next(iter(self._spoken))), why, None, failure)

    def _tell(self, spoken: Spoken, why: str, ended: Ended | None, failure: str) -> None:
        if spoken.span is not None:
            spoken.span.end(_how_it_went(spoken, why, ended), failure)
        log.debug(
            "an utterance has ended",
            session=spoken.session,
            utterance=spoken.number,
            avatar=spoken.avatar,
            why=why,
            pictures=spoken.pictures,
            late=spoken.late,
            skipped=spoken.skipped,
            dropped=0 if ended is None else ended.dropped,
            first_ms=round(spoken.first_ms or 0.0, 1),
            slowest_ms=round(spoken.slowest_ms, 1),
        )


def _how_it_went(spoken: Spoken, why: str, ended: Ended | None) -> dict[str, Value]:
    """The attributes of its span, at its end."""
    went: dict[str, Value] = {
        "ended": why,
        "engines": list(spoken.engines),
        "sound_s": round(spoken.samples / SAMPLE_RATE, 3),
        "pictures": spoken.pictures,
        "late": spoken.late,
        "skipped": spoken.skipped,
    }
    if spoken.first_ms is not None:
        went |= {
            "first_ms": round(spoken.first_ms, 1),
            "slowest_ms": round(spoken.slowest_ms, 1),
        }
    if ended is not None:
        went |= {"frames": ended.frames, "dropped": ended.dropped, "left_out": ended.left_out}
    return went
