# SPDX-License-Identifier: Apache-2.0
"""One timer for all sessions of a front: it calls them when their moments have come.

A sleeping task for each session would cost a cancellation and two changes of tasks a frame. Here
one task waits for one timer descriptor, which is set to the earliest moment of all.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable

import trio

from lipsync_fast.logs import get_logger
from lipsync_fast.timing import NS_PER_S

log = get_logger("lipsync.front")
_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_CLOSE_ON_EXEC, _NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class _Timer:
    """A descriptor that becomes readable at a moment on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _CLOSE_ON_EXEC | _NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._setting = _Setting()

    def set(self, when_ns: int) -> None:
        """At that moment, or at once when it has passed; 0 for never."""
        if self.fd < 0:
            return  # the front ends
        value = self._setting.value
        value.seconds, value.nanoseconds = divmod(when_ns, NS_PER_S)
        if self._libc.timerfd_settime(self.fd, _ABSOLUTE, ctypes.byref(self._setting), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def drain(self) -> None:
        """Forget that it has come."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)


class Alarm:
    """Calls back at the moment that it is set to; setting it again replaces that."""

    def __init__(self, timer: SlotTimer, call: Callable[[], None]) -> None:
        self._slot_timer, self._call = timer, call
        self.due_ns: int | None = None
        """When; None where it is not set."""
        self.queued_ns: int | None = None
        """Under which moment the timer knows it: no later than it is due."""

    def set(self, when_ns: int | None) -> None:
        """On CLOCK_MONOTONIC; in the next turn where that has passed; None: not at all."""
        self.due_ns = when_ns
        if when_ns is not None and (self.queued_ns is None or when_ns < self.queued_ns):
            self._slot_timer.expect(self, when_ns)

    def ring(self) -> None:
        """Call back; by the timer alone."""
        self.due_ns = None
        self._call()

    def close(self) -> None:
        """Never call back again."""
        self.due_ns, self._call = None, _nothing


def _nothing() -> None:
    pass


class SlotTimer:
    """All alarms of a front; ``run`` rings them. One thread."""

    def __init__(self) -> None:
        self._timer = _Timer()
        self._heap: list[tuple[int, int, Alarm]] = []
        self._numbers = itertools.count()
        self._set_to = 0
        """What the timer is set to; 0 for nothing."""

    def alarm(self, call: Callable[[], None]) -> Alarm:
        """An alarm that is not set. What ``call`` raises is a defect: it is logged."""
        return Alarm(self, call)

    def expect(self, alarm: Alarm, when_ns: int) -> None:
        """An alarm is set to an earlier moment than it was known under."""
        alarm.queued_ns = when_ns
        heapq.heappush(self._heap, (when_ns, next(self._numbers), alarm))
        if not self._set_to or when_ns < self._set_to:
            self._arm(when_ns)

    def _arm(self, when_ns: int) -> None:
        self._set_to = max(1, when_ns)
        self._timer.set(self._set_to)

    async def run(self) -> None:
        """Ring until cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._timer.fd)
                self._timer.drain()
                self.ring_due(time.monotonic_ns())
        finally:
            self._timer.close()

    def ring_due(self, now_ns: int) -> None:
        """Ring what is due, each alarm once."""
        self._set_to = 1  # nothing that is set meanwhile is earlier
        due = []
        while self._heap and self._heap[0][0] <= now_ns:
            queued_ns, _, alarm = heapq.heappop(self._heap)
            if alarm.queued_ns != queued_ns:
                continue  # it is known under an earlier moment
            alarm.queued_ns = None
            if alarm.due_ns is None:
                continue
            if alarm.due_ns <= now_ns:
                due.append(alarm)
            else:
                self.expect(alarm, alarm.due_ns)
        for alarm in due:
            try:
                alarm.ring()
            except Exception:
                log.exception("an alarm has failed")
        self._set_to = 0
        if self._heap:
            self._arm(self._heap[0][0])
