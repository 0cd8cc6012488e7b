# SPDX-License-Identifier: Apache-2.0
"""How fast an engine makes frames now, against what it has measured at its start.

Where others use the processors too (programs, neighbours of a virtual machine), frames take longer
than they did then, and fewer fit into a second. What a frame takes by the clock says so, however
few are asked for.
"""

from __future__ import annotations

from collections import deque

LOOKS, LEAST_LOOKS = 8, 4
"""Times that count, and how many are needed: one slow moment says nothing of the next one."""
TOLERANCE = 1.4
"""Frames that take up to so many times what was measured are no news: the share that speakers may
use (live.headroom) is for them, and so is what the front needs."""
LEAST = 0.01
RISE_S = 10.0
"""In so long it comes back from nothing to all: slower than it fell, so that it does not swing."""


class Speed:
    """Follows one engine. No clock is read here.

    Args:
        capacity: frames a second that it has measured.
        threads: that make one frame each; None where frames are made otherwise (on a GPU): then
            nothing is followed.
    """

    def __init__(self, capacity: float, threads: int | None) -> None:
        self._takes_s = threads / capacity if threads and capacity else 0.0
        self._seen: deque[float] = deque(maxlen=LOOKS)
        self._looked_s = self._work_s = 0.0
        self._frames = 0
        self.now = 1.0
        """A part of the capacity."""

    def look(self, now_s: float, frames: int, work_s: float) -> None:
        """Look again; some times a second.

        What is done once for each of an avatar's frames is not in it: a server that has just
        started is not slow.

        Args:
            now_s: of a clock that does not go back.
            frames: that networks have made so far; work_s: what threads were busy for with them.
        """
        passed, self._looked_s = max(0.0, now_s - self._looked_s), now_s
        made, worked = frames - self._frames, work_s - self._work_s
        if made > 0 and worked > 0:
            self._seen.append(made * self._takes_s / worked)
        elif worked <= 0 and self._seen:
            self._seen.popleft()  # what was long ago is so no more
        if made > 0 or worked <= 0:  # else work counts with the frames that it was for
            self._frames, self._work_s = frames, work_s
        seen = 1.0
        if self._takes_s and len(self._seen) >= LEAST_LOOKS:
            seen = sorted(self._seen)[len(self._seen) // 2]
            seen = 1.0 if seen * TOLERANCE >= 1 else max(seen, LEAST)
        self.now = seen if seen < self.now else min(seen, self.now + passed / RISE_S)
