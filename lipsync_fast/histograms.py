# SPDX-License-Identifier: Apache-2.0
"""How long things took, all that ever did, in bounded memory: Prometheus makes quantiles of it."""

from __future__ import annotations

import time
from bisect import bisect_left

import msgspec

SHORT = (
    "0.0005", "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256",
    "0.512", "+Inf",
)  # fmt: skip
"""Ends of buckets for what happens to a frame within an engine."""


class Exemplar(msgspec.Struct):
    """One that was counted, and can be looked at.

    Attributes:
        trace_id: of the trace that it is in.
        seconds: how long it took.
        at_s: when that was, since 1970.
    """

    trace_id: str
    seconds: float
    at_s: float


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

    Attributes:
        sum_s: of all of them.
        exemplars: by bucket, the last one that is traced.
    """

    __slots__ = ("_counts", "_ends", "_ends_s", "exemplars", "sum_s")

    def __init__(self, ends: tuple[str, ...]) -> None:
        self._ends, self._ends_s = ends, [float(end) for end in ends]
        self._counts = [0] * len(ends)
        self.sum_s = 0.0
        self.exemplars: dict[str, Exemplar] = {}

    def add(self, seconds: float, trace_id: str = "") -> None:
        """Something took so long; less than nothing, as clocks may say, is nothing.

        Args:
            trace_id: of the trace that it is in; nothing where it is in none.
        """
        seconds = max(0.0, seconds)
        bucket = bisect_left(self._ends_s, seconds)
        self._counts[bucket] += 1
        self.sum_s += seconds
        if trace_id:
            self.exemplars[self._ends[bucket]] = Exemplar(trace_id, seconds, time.time())

    @property
    def counts(self) -> dict[str, int]:
        """How many there are in each bucket."""
        return dict(zip(self._ends, self._counts, strict=True))

    @property
    def durations(self) -> Durations:
        """What has been counted by now."""
        return Durations(self.counts, self.sum_s)
