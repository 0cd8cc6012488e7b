# SPDX-License-Identifier: Apache-2.0
"""Processor time of an engine, by what it was spent on; and how long all of it took."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from lipsync_fast.histograms import SHORT, Durations, Histogram


class CpuTime:
    """Counts the processor time of threads by what they do; any thread may.

    Of parts within parts, each has its own time alone. So the sum of all is what was spent within
    any of them, and no more.

    Attributes:
        WORK: what every frame needs anew, and not what is done once for an avatar: for these parts
            it is also counted how long they took by the clock, with what the threads had to wait
            for a processor.
        STAGES: what frames go through, one by one or in batches: of these it is also counted how
            long each took by the clock, every one of them.
    """

    WORK = frozenset(("mel", "audio encoder", "decoder", "compose"))
    STAGES = WORK | {"launch", "results", "JPEG", "H.264"}

    def __init__(self) -> None:
        self._ns: dict[str, int] = {}
        self._work_ns = 0
        self._stages: dict[str, Histogram] = {}
        self._lock = threading.Lock()
        self._here = threading.local()

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count what the thread spends within ``with``."""
        here = self._here
        outer_ns, here.inner_ns = getattr(here, "inner_ns", 0), 0
        outer_clock_ns, here.clock_ns = getattr(here, "clock_ns", 0), 0
        counts = what in self.WORK and not getattr(here, "works", False)
        here.works = counts or getattr(here, "works", False)
        begun, begun_at = time.thread_time_ns(), time.perf_counter_ns()
        try:
            yield
        finally:
            took = time.thread_time_ns() - begun
            clock_ns = time.perf_counter_ns() - begun_at
            own, here.inner_ns = took - here.inner_ns, outer_ns + took
            own_clock_ns, here.clock_ns = clock_ns - here.clock_ns, outer_clock_ns + clock_ns
            with self._lock:
                self._ns[what] = self._ns.get(what, 0) + own
                if counts:
                    self._work_ns += clock_ns
                if what in self.STAGES:
                    stage = self._stages.get(what)
                    if stage is None:
                        stage = self._stages[what] = Histogram(SHORT)
                    stage.add(own_clock_ns / 1e9)
            if counts:
                here.works = False

    @property
    def work_s(self) -> float:
        """What threads were busy making frames for, by the clock; only grows."""
        with self._lock:
            return self._work_ns / 1e9

    @property
    def seconds(self) -> dict[str, float]:
        """By what; they only grow."""
        with self._lock:
            return {what: ns / 1e9 for what, ns in self._ns.items()}

    @property
    def stages(self) -> dict[str, Durations]:
        """How long each of ``STAGES`` took, those within it not counted; they only grow."""
        with self._lock:
            return {what: stage.durations for what, stage in self._stages.items()}
