# SPDX-License-Identifier: Apache-2.0
"""One clock for a peer's picture and sound: that of its session, from the peer's beginning on."""

from __future__ import annotations

import time
from collections.abc import Callable

US_PER_S = 1_000_000


class Timeline:
    """Moments of sessions as media time, which only grows, and media time as moments.

    Media time is in microseconds. It is a session's own, moved as a whole, so that distances are
    the server's. A session that takes the place of another goes on where that one was lost.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._offset: int | None = None
        self._early = 0
        """How much earlier than by media time the earliest moment of the session has come."""
        self._last = 0

    @property
    def now(self) -> int:
        """Media time now, were everything as early as what came the earliest."""
        return self._elapsed() - self._early

    def see(self, pts_us: int) -> int:
        """The media time of a moment of the session, something of which has come now."""
        elapsed = self._elapsed()
        if self._offset is None:
            begins = max(elapsed, self._last)
            self._offset, self._early = begins - pts_us, 0
        media = pts_us + self._offset
        self._early = min(self._early, elapsed - media)
        self._last = max(self._last, media)
        return media

    def begin_again(self) -> None:
        """What comes next is of another session."""
        self._offset = None

    def until(self, media: int) -> float:
        """Seconds from now to a media time."""
        return (media - self.now) / US_PER_S

    def _elapsed(self) -> int:
        return round((self._clock() - self._began) * US_PER_S)
