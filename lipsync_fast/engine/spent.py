# SPDX-License-Identifier: Apache-2.0
"""Processor time of an engine, by what it was spent on."""

from __future__ import annotations

import threading
import time
from types import TracebackType


class Spent:
    """Counts the processor time of threads by what they do; any thread may.

    Of parts within parts, each has its own time alone. So the sum of all is what was spent within
    any of them, and no more.
    """

    def __init__(self) -> None:
        self._ns: dict[str, int] = {}
        self._lock = threading.Lock()
        self._here = threading.local()

    def on(self, what: str) -> _Span:
        """Count what the thread spends within ``with``."""
        return _Span(self, what)

    @property
    def seconds(self) -> dict[str, float]:
        """By what; they only grow."""
        with self._lock:
            return {what: ns / 1e9 for what, ns in self._ns.items()}

    def _enter(self) -> tuple[int, int]:
        outer = getattr(self._here, "inner_ns", 0)
        self._here.inner_ns = 0
        return outer, time.thread_time_ns()

    def _leave(self, what: str, outer: int, begun: int) -> None:
        took = time.thread_time_ns() - begun
        own = took - self._here.inner_ns
        self._here.inner_ns = outer + took
        with self._lock:
            self._ns[what] = self._ns.get(what, 0) + own


class _Span:
    __slots__ = ("_begun", "_outer", "_spent", "_what")

    def __init__(self, spent: Spent, what: str) -> None:
        self._spent, self._what = spent, what

    def __enter__(self) -> None:
        self._outer, self._begun = self._spent._enter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._spent._leave(self._what, self._outer, self._begun)
