# SPDX-License-Identifier: Apache-2.0
"""How far a training is: one line that is written over on a terminal, else one now and then."""

from __future__ import annotations

import sys
import time
from collections import deque

from lipsync_fast.console import clock, say
from lipsync_fast.train.options import MOST_STEPS

_LIVE_EVERY_S, _PLAIN_EVERY_S = 0.2, 10.0
_RATE_OVER = 64
"""Steps whose time the rate is taken from."""
_SMOOTH = 0.95


class StepProgress:
    """The line: step, loss, rate, time left.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._times: deque[float] = deque([time.monotonic()], _RATE_OVER + 1)
        self._next = time.monotonic()
        self._loss: float | None = None
        self._shown = False

    def step(self, done: int, total: int, loss: float, what: str = "") -> None:
        """So many steps of ``total`` are done, the last of them with this loss (0..1)."""
        now = time.monotonic()
        self._times.append(now)
        self._loss = loss if self._loss is None else _SMOOTH * self._loss + (1 - _SMOOTH) * loss
        if self._quiet or now < self._next:
            return
        self._next = now + (_LIVE_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        if self._terminal:
            sys.stderr.write(f"\r{what}{self.line(done, total)}\x1b[K")
            sys.stderr.flush()
            self._shown = True
        else:
            say(what + self.line(done, total))

    def line(self, done: int, total: int) -> str:
        """What is shown."""
        rate = (len(self._times) - 1) / max(1e-9, self._times[-1] - self._times[0])
        if total >= MOST_STEPS:  # it ends by time
            return f"step {done}, loss {self._loss or 0:.5f}, {rate:.2f} steps/s"
        left = clock((total - done) / max(1e-9, rate))
        percent = 100 * done // total
        return (
            f"step {done}/{total} ({percent}%), loss {self._loss or 0:.5f},"
            f" {rate:.2f} steps/s, {left} left"
        )

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        self.clear()
        say(line)

    def clear(self) -> None:
        """Take the live line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False

    def resting(self) -> None:
        """What now takes time is no step; it does not count into the rate."""
        self._times = deque([time.monotonic()], _RATE_OVER + 1)
