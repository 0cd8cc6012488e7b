# SPDX-License-Identifier: Apache-2.0
"""Percentiles of what happened lately, in bounded memory."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

KEPT_S = 60
MOST = 20_000


class Latencies:
    """Durations of the last minute (at most the last 20,000)."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque(maxlen=MOST)

    def add(self, milliseconds: float) -> None:
        """Note one that was seen now."""
        self._kept.append((time.monotonic(), milliseconds))

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
