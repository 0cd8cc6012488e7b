# SPDX-License-Identifier: Apache-2.0
"""How long frames take, lately: what tells that one which begins now would come too late."""

from __future__ import annotations

from collections import deque

from lipsync_fast.histograms import SHORT, Histogram

SPREAD, ON_THE_WAY_NS = 1.5, 2_000_000
"""A job is skipped when frames that take this many times their usual deviation longer than usual,
and so long to their front, would be late."""
FORGET, MOST_TAKES_NS = 0.95, 1_000_000_000


class FrameTime:
    """From frames' beginnings to their ends: the mean lately, and how far single ones are from it.

    ``took`` may be called in any thread, all else in one.

    Attributes:
        ever: all that there ever were.
    """

    def __init__(self) -> None:
        self._took: deque[int] = deque()
        self._mean_ns = self._spread_ns = 0.0
        self.ever = Histogram(SHORT)

    def took(self, ns: int) -> None:
        """A frame has ended, so long after it began."""
        self._took.append(ns)

    def update(self) -> None:
        """Take in the frames that have ended."""
        while self._took:
            ns = self._took.popleft()
            self.ever.add(ns / 1e9)
            off = min(ns, MOST_TAKES_NS) - self._mean_ns
            self._mean_ns += off / 8
            self._spread_ns += (abs(off) - self._spread_ns) / 8

    def forget(self) -> None:
        """Believe it a little less, so that one slow moment is not believed for ever."""
        self._mean_ns *= FORGET
        self._spread_ns *= FORGET

    @property
    def expected_ns(self) -> int:
        """How long a frame that begins now may take to reach its front; 0 before the first one."""
        if not self._mean_ns:
            return 0
        return int(self._mean_ns + SPREAD * self._spread_ns) + ON_THE_WAY_NS
