# SPDX-License-Identifier: Apache-2.0
"""Jobs that were taken and have not begun, the most urgent first."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.front_link import FrontLink
from lipsync_fast.engine.picture_jobs import Picture
from lipsync_fast.ipc.messages import Job


@dataclass(order=True, slots=True)
class QueuedJob:
    """A job that was taken; ordered by deadline, then by arrival.

    Attributes:
        front: where it came from, and its answer goes.
        avatar: held for it until it is answered or dropped.
        picture: what it asks for.
        taken_ns: when it was taken, CLOCK_MONOTONIC.
    """

    deadline_ns: int
    arrival: int
    front: FrontLink = field(compare=False)
    job: Job = field(compare=False)
    avatar: RegisteredAvatar = field(compare=False)
    picture: Picture = field(compare=False)
    taken_ns: int = field(compare=False)


class JobQueue:
    """A heap of jobs; each front's link counts those of it that wait here."""

    def __init__(self) -> None:
        self._heap: list[QueuedJob] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> QueuedJob | None:
        """The most urgent one."""
        return self._heap[0] if self._heap else None

    @property
    def oldest_ns(self) -> int | None:
        """When the one that waits for longest was taken; None where none waits."""
        return min((entry.taken_ns for entry in self._heap), default=None)

    def push(self, entry: QueuedJob) -> None:
        """A job waits."""
        entry.front.waiting += 1
        heapq.heappush(self._heap, entry)

    def pop(self) -> QueuedJob:
        """Take the most urgent one out."""
        entry = heapq.heappop(self._heap)
        entry.front.waiting -= 1
        return entry

    def drop(self, unwanted: Callable[[QueuedJob], bool]) -> list[QueuedJob]:
        """Take some out, wherever they are; gives those."""
        dropped = [entry for entry in self._heap if unwanted(entry)]
        if dropped:
            self._heap = [entry for entry in self._heap if not unwanted(entry)]
            heapq.heapify(self._heap)
            for entry in dropped:
                entry.front.waiting -= 1
        return dropped
