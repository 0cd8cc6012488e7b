# SPDX-License-Identifier: Apache-2.0
"""Percentiles of what happened lately, and a histogram of all, in bounded memory."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from lipsync_fast.histograms import Histogram

KEPT_S = 60
MOST = 20_000
BOUNDS = ("0.02", "0.04", "0.06", "0.07", "0.08", "0.1", "0.15", "0.2", "0.3", "0.45", "1", "+Inf")
"""Upper ends of the histogram's buckets, in seconds; around a margin of 66 ms they lie close."""


class Latencies:
    """Durations: those of the last minute (at most the last 20,000), and how many there ever were.

    Attributes:
        ever: all that there ever were.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque(maxlen=MOST)
        self.ever = Histogram(BOUNDS)

    def add(self, milliseconds: float, trace_id: str = "") -> None:
        """Note one that was seen now; in a trace, where it is in one."""
        self._kept.append((time.monotonic(), milliseconds))
        self.ever.add(milliseconds / 1e3, trace_id)

    def percentiles(self) -> dict[str, float]:
        """p50, p95, p99 and most, in milliseconds; nothing where there were none."""
        since = time.monotonic() - KEPT_S
        while self._kept and self._kept[0][0] < since:
            self._kept.popleft()
        if not self._kept:
            return {}
        values = np.array([v for _, v in self._kept])
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return {
            "p50": round(float(p50), 2),
            "p95": round(float(p95), 2),
            "p99": round(float(p99), 2),
            "most": round(float(values.max()), 2),
        }
