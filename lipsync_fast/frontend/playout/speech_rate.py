# SPDX-License-Identifier: Apache-2.0
"""How often those that speak are shown: every second picture where engines cannot make them all.

Who may begin to speak was admitted by what engines could make at that moment. Where they then lose
processors to others, a queue would grow until all pictures of all sessions are late. So all of a
front's sessions fall together to 12.5 pictures a second, in step with their sound, before that
happens; and come back when there has been room for all for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from lipsync_fast.logs import get_logger
from lipsync_fast.timing import FPS

log = get_logger("lipsync.front")
HALF = 2
LOOK_S = 0.25
ROOM = 0.9
"""All pictures are made again when they would be this part of what engines can make."""
SLOW, FAST = 0.75, 0.4
"""Parts of the most that a frame may take before it is late: beyond the one, too much is asked for;
below the other, no longer."""
CALM_S, MOST_CALM_S = 3.0, 24.0
"""There has to be room for so long; longer each time it was too soon."""


class SpeechRate:
    """Decides ``stride``: of frames that are spoken, one in so many is shown. One thread.

    Args:
        latency_ns: how long spoken frames take lately.
        most_ns: how long one may take: the longest margin.
        speaking: how many sessions speak, here and in other fronts.
        capacity: frames a second that engines can make now.
        clock: seconds.
    """

    def __init__(
        self,
        latency_ns: Callable[[], float],
        most_ns: float,
        speaking: Callable[[], tuple[int, int]],
        capacity: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stride = 1
        self._latency_ns, self._most_ns = latency_ns, most_ns
        self._speaking, self._capacity, self._clock = speaking, capacity, clock
        self._calm_s, self._calm_since, self._eased = CALM_S, clock(), clock() - MOST_CALM_S

    def measure(self) -> None:
        """Look, and decide."""
        now, (here, elsewhere) = self._clock(), self._speaking()
        needed, capacity = FPS * (here + elsewhere), self._capacity()
        if not capacity:
            return  # no engine works: that is not for want of time
        latency_ns = self._latency_ns() if here else 0.0
        if here and (needed > capacity or latency_ns > SLOW * self._most_ns):
            self._calm_since = now
            if self.stride < HALF:
                if now - self._eased < 2 * self._calm_s:  # it was too soon
                    self._calm_s = min(2 * self._calm_s, MOST_CALM_S)
                self._change(HALF, "engines cannot make all frames; every second one is shown")
        elif here and (needed > ROOM * capacity or latency_ns > FAST * self._most_ns):
            self._calm_since = now
        elif now - self._calm_since >= self._calm_s:
            self._calm_since = now
            if self.stride > 1:
                self._eased = now
                self._change(1, "all frames are shown again")
            else:
                self._calm_s = max(CALM_S, self._calm_s / 2)

    def _change(self, stride: int, what: str) -> None:
        self.stride = stride
        here, elsewhere = self._speaking()
        log.warning(what, speaking=here + elsewhere, frames_per_s=round(self._capacity(), 1))

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            self.measure()
