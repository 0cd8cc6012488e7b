# SPDX-License-Identifier: Apache-2.0
"""How often sessions that rest are shown: less often where that takes time from those that speak.

Speech is admitted by what engines can make; sessions that only rest are not counted there, and each
still costs a picture every 40 ms. Where those add up to what a front may use, or frames that are
spoken begin to take long, every second picture of sessions that rest is left out, then three of
four. What is spoken keeps its rate.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import trio

MOST_STRIDE = 4
"""One picture in so many is shown at least."""
LOOK_S, LOOKS = 0.25, 4
"""How often it measures, and over how many times together: a session that begins costs a front some
tens of milliseconds once, and that is no pressure."""
CALM_S, MOST_CALM_S = 2.0, 16.0
"""Without pressure for so long, more pictures are shown again; longer each time it was too soon."""
SILENT_S = 5.0
"""When nobody has spoken for so long, what was too soon before is so no more."""
SHARED, ALONE = 0.2, 0.7
"""The part of a processor that a front may use before resting sessions give way: where engines use
the same ones, and where it has one for itself."""
SPEAKER = 0.025
"""What one that speaks needs of a processor: 25 frames a second of a millisecond."""
SLOW_NS = 50_000_000
"""A spoken frame that takes so long shows that engines get too little: beyond it, margins grow."""


class IdleRate:
    """Decides ``stride``: sessions that rest show one slot in so many. One thread.

    Args:
        share: of a processor that the front may use.
        latency_ns: how long spoken frames take lately.
        sessions: how many speak, how many may, and how many there are.
        used_s: processor time that the front's thread has used.
        clock: seconds.
    """

    def __init__(
        self,
        share: float,
        latency_ns: Callable[[], float],
        sessions: Callable[[], tuple[int, int, int]],
        used_s: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stride = 1
        self._share, self._latency_ns, self._sessions = share, latency_ns, sessions
        self._used_s, self._clock = used_s, clock
        self._last = clock(), used_s()
        self._resting = deque([0.0] * LOOKS, LOOKS)
        self._calm_s, self._calm_since, self._eased = CALM_S, clock(), clock() - MOST_CALM_S
        self._spoke = clock()

    def measure(self) -> None:
        """Measure since the last time, and decide."""
        now, used = self._clock(), self._used_s()
        passed, busy = now - self._last[0], used - self._last[1]
        if passed <= 0:
            return
        self._last = now, used
        speaking, may_speak, all_of = self._sessions()
        if speaking:
            self._spoke = now
        elif now - self._spoke > SILENT_S:
            self._calm_s = CALM_S
        # Those that may speak can begin at any moment: what they need is not given away.
        free = self._share - min(SPEAKER * may_speak, self._share / 2)
        self._resting.append(max(0.0, busy / passed - SPEAKER * speaking))
        resting = sum(self._resting) / LOOKS
        # Where few rest, they cannot be what makes engines slow.
        slow = 0 < speaking < all_of - speaking and self._latency_ns() > SLOW_NS
        if resting > free or slow:
            if self.stride < MOST_STRIDE:
                if now - self._eased < 2 * self._calm_s:  # it was too soon
                    self._calm_s = min(2 * self._calm_s, MOST_CALM_S)
                self.stride *= 2
                self._expect(0.5)
            self._calm_since = now
        elif self.stride > 1 and 2 * resting > free:
            self._calm_since = now  # twice as many would be too many again
        elif now - self._calm_since >= self._calm_s:
            self._calm_since = now
            if self.stride > 1:
                self.stride //= 2
                self._expect(2)
                self._eased = now
            else:
                self._calm_s = max(CALM_S, self._calm_s / 2)

    def _expect(self, times: float) -> None:
        """From now on resting takes so many times what it took."""
        for k, share in enumerate(self._resting):
            self._resting[k] = times * share

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            self.measure()
