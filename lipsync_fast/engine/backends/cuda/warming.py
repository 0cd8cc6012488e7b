# SPDX-License-Identifier: Apache-2.0
"""Captures graphs beside the work, the smallest sizes of all networks first."""

from __future__ import annotations

import heapq
import itertools
import threading

from lipsync_fast.engine.backends.cuda.avatar import CudaAvatar
from lipsync_fast.engine.backends.cuda.budget import Budget
from lipsync_fast.engine.backends.cuda.device import Fault
from lipsync_fast.engine.backends.cuda.graphs import warming_order
from lipsync_fast.engine.backends.cuda.nets import Sized
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")


class Warming:
    """A thread that makes the graphs that are missing, one after the other; for any thread.

    A graph that cannot be captured is done without: smaller ones take its batches. For want of
    memory no larger one of that network is tried either, and nothing is shed for it.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._changed = threading.Condition()
        self._count = itertools.count()
        self._todo: list[tuple[int, int, CudaAvatar, Sized]] = []
        self._now: CudaAvatar | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lipsync-graphs")
        self._thread.start()

    def add(self, avatar: CudaAvatar) -> None:
        """Make all graphs of an avatar that are missing."""
        with self._changed:
            for network in avatar.networks:
                for size in warming_order(network.sizes):
                    if size not in network.graphs:
                        heapq.heappush(self._todo, (size, next(self._count), avatar, network))
            self._changed.notify_all()

    def forget(self, avatar: CudaAvatar) -> None:
        """Make no more for an avatar; the one that is being made is finished."""
        with self._changed:
            self._todo = [entry for entry in self._todo if entry[2] is not avatar]
            heapq.heapify(self._todo)
            self._changed.wait_for(lambda: self._now is not avatar)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until nothing is left to make; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._todo or self._now), timeout_s)

    def close(self) -> None:
        """End the thread; what is being captured is finished."""
        with self._changed:
            self._closing = True
            self._todo.clear()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._now = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._todo) or self._closing)
                if self._closing:
                    return
                size, _, avatar, network = heapq.heappop(self._todo)
                self._now = avatar
            try:
                network.capture(size)
            except Exception as error:
                self._refused(size, avatar, network, error)
            del avatar, network  # nothing is held of what may be unloaded while this thread sleeps

    def _refused(self, size: int, avatar: CudaAvatar, network: Sized, error: Exception) -> None:
        log.warning("no graph", avatar=avatar.package.path, size=size, reason=str(error))
        if network.device.fault(error) is Fault.MEMORY:
            with self._changed:
                self._todo = [entry for entry in self._todo if entry[3] is not network]
                heapq.heapify(self._todo)
