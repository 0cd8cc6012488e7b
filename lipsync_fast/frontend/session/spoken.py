# SPDX-License-Identifier: Apache-2.0
"""A session's utterances, each from its first sound to its end: how it went."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lipsync_fast.frontend.playout.playout import Ended, Flag, Picture
from lipsync_fast.frontend.statistics import FrontStatistics
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.front")


@dataclass(slots=True)
class Spoken:
    """An utterance that is being said.

    Attributes:
        avatar: that is shown; session: its number.
        begun_ns: when its first sound was here, CLOCK_MONOTONIC.
        pictures: of it that the transport has taken.
        late: slots that showed the last picture again; skipped: pictures that were left out since
            the client reads slowly.
        first_ms: from its first sound to its first picture on the socket; slowest_ms: from a
            frame's last sound to its picture on the socket, the longest.
    """

    number: int
    session: int
    avatar: str
    begun_ns: int
    pictures: int = 0
    late: int = 0
    skipped: int = 0
    first_ms: float | None = None
    slowest_ms: float = 0.0


class SpokenUtterances:
    """Follows the utterances of one session.

    Args:
        session: its number.
        paced: its pictures have moments; the first ones' count for the front's figures.
    """

    def __init__(self, front: FrontStatistics, session: int, paced: bool) -> None:
        self._front, self._session, self._paced = front, session, paced
        self._spoken: dict[int, Spoken] = {}

    def begin(self, number: int, avatar: str, now_ns: int) -> None:
        """The first sound of an utterance is here."""
        self._spoken[number] = Spoken(number, self._session, avatar, now_ns)

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
                self._front.first_picture.add(spoken.first_ms / 1e3)

    def on_left_out(self, pictures: int) -> None:
        """The client reads too slowly: so many were left out, of what is said now."""
        spoken = next(iter(self._spoken.values()), None)
        if spoken is not None:
            spoken.skipped += pictures

    def end(self, event: Ended) -> None:
        """The last picture's turn has come."""
        spoken = self._spoken.pop(event.utterance, None)
        if spoken is not None:
            self._tell(spoken, "quiet" if event.quiet else "end", event)

    def break_off(self, why: str) -> None:
        """All that is being said ends here."""
        while self._spoken:
            self._tell(self._spoken.pop(next(iter(self._spoken))), why, None)

    def _tell(self, spoken: Spoken, why: str, ended: Ended | None) -> None:
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
