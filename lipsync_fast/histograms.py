# SPDX-License-Identifier: Apache-2.0
"""How long things took, all that ever did, in bounded memory: Prometheus makes quantiles of it."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

SHORT = (
    "0.0005", "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256",
    "0.512", "+Inf",
)  # fmt: skip
"""Ends of buckets for what happens to a frame within an engine."""


class Durations(msgspec.Struct):
    """A histogram as it is told.

    Attributes:
        counts: by the upper end of each bucket in seconds, as text, from the shortest to "+Inf":
            how many took up to so long, those of the buckets before it not among them. A bucket's
            own end belongs to it.
        sum_s: of all of them.
    """

    counts: dict[str, int] = msgspec.field(default_factory=dict)
    sum_s: float = 0.0


class Histogram:
    """Counts durations. Who adds in several threads holds a lock.

    Args:
        ends: of the buckets, see ``Durations``; the last one is "+Inf".
    """

    __slots__ = ("_counts", "_ends", "_ends_s", "sum_s")

    def __init__(self, ends: tuple[str, ...]) -> None:
        self._ends, self._ends_s = ends, [float(end) for end in ends]
        self._counts = [0] * len(ends)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Something took so long; less than nothing, as clocks may say, is nothing."""
        seconds = max(0.0, seconds)
        self._counts[bisect_left(self._ends_s, seconds)] += 1
        self.sum_s += seconds

    @property
    def counts(self) -> dict[str, int]:
        """How many there are in each bucket."""
        return dict(zip(self._ends, self._counts, strict=True))

    @property
    def durations(self) -> Durations:
        """What has been counted by now."""
        return Durations(self.counts, self.sum_s)
