# SPDX-License-Identifier: Apache-2.0
"""When an utterance that its client never ends is over: nothing comes, and nothing is to be shown.

A client that was cut off, or has forgotten ``utterance.end``, would hold a speaker's place for as
long as its connection lives, and the frames that wait for more sound would never be shown.
"""

from __future__ import annotations

from typing import Protocol


class Heard(Protocol):
    """A playout, as far as it matters here; see ``playout.Playout``."""

    @property
    def open(self) -> bool:
        """An utterance has begun and not been ended."""
        ...

    @property
    def owes(self) -> bool:
        """Frames of it can be made by now, and were not shown."""
        ...

    @property
    def heard(self) -> tuple[int, int]:
        """Which utterance that is, and frames of sound that have come of it."""
        ...


class QuietTime:
    """Measures for one session. No clock is read here.

    Sound counts by whole frames: a sample now and then is no speech.

    Args:
        limit_ns: how long it may be quiet.
    """

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._heard = (0, 0)
        self._since_ns = 0

    def is_over(self, playout: Heard, now_ns: int) -> bool:
        """Look, again and again: whether the open utterance has been quiet for too long."""
        heard = playout.heard
        if not playout.open or playout.owes or heard != self._heard:
            self._heard, self._since_ns = heard, now_ns
            return False
        return now_ns - self._since_ns >= self._limit_ns
