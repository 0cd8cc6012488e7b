# SPDX-License-Identifier: Apache-2.0
"""Processor time of an engine, by what it was spent on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class CpuTime:
    """Counts the processor time of threads by what they do; any thread may.

    Of parts within parts, each has its own time alone. So the sum of all is what was spent within
    any of them, and no more.
    """

    def __init__(self) -> None:
        self._ns: dict[str, int] = {}
        self._lock = threading.Lock()
        self._here = threading.local()

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count what the thread spends within ``with``."""
        here = self._here
        outer_ns, here.inner_ns = getattr(here, "inner_ns", 0), 0
        begun = time.thread_time_ns()
        try:
            yield
        finally:
            took = time.thread_time_ns() - begun
            own, here.inner_ns = took - here.inner_ns, outer_ns + took
            with self._lock:
                self._ns[what] = self._ns.get(what, 0) + own

    @property
    def seconds(self) -> dict[str, float]:
        """By what; they only grow."""
        with self._lock:
            return {what: ns / 1e9 for what, ns in self._ns.items()}
