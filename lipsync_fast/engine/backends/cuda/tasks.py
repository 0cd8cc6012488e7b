# SPDX-License-Identifier: Apache-2.0
"""Frames that are to be made: from a job to its future."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.engine.backends.base import (
    SQUARE,
    Coded,
    Encode,
    RegionJob,
    check_job,
)
from lipsync_fast.engine.backends.cuda.avatar import CudaAvatar
from lipsync_fast.engine.backends.cuda.images import Face
from lipsync_fast.geometry import Rect

UNIT = 16
"""Side of a minimum coded unit in pixels, with 4:2:0."""


class Kind(IntEnum):
    """What a task makes; the numbers are those of compose jobs."""

    PART = 0
    SQUARE = 1
    REGION = 2


@dataclass(slots=True, eq=False)
class Task:
    """A frame that is to be made.

    Attributes:
        number: in the order in which they came.
        part: of the frame, what lies on the device.
        kind: the part, or the square or what the network made of it alone.
        face: once it is there.
        finish: with what was made, in the backend's threads.
    """

    number: int
    job: RegionJob
    avatar: CudaAvatar
    part: Rect
    kind: Kind
    finish: Callable[[NDArray[np.uint8] | Coded], Any]
    future: Future[Any]
    face: Face | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its pixels."""
        if self.kind == Kind.SQUARE:
            side = self.avatar.crop - 2 * self.avatar.rule.border
            return side, side
        if self.kind == Kind.REGION:
            _, height, width = self.avatar.made
            return width, height
        return self.part.size


def segments(encode: Encode) -> tuple[int, int]:
    """Restart segments of what is to be coded, and the units of the largest one."""
    width, height = encode.box.size
    units = -(-width // UNIT) * -(-height // UNIT)
    return -(-units // encode.interval), min(units, encode.interval)


def check(job: RegionJob) -> None:
    """Refuse a job that cannot be; its sound and its frame are looked at later, by themselves.

    Raises:
        ValueError: what is wrong.
    """
    check_job(job, takes_sound=True)
    encode = job.encode
    if encode is not None and job.part is not None and job.part != SQUARE:
        box, (width, height) = encode.box, job.part.size
        if not (min(box.size) > 0 and box in Rect(0, 0, width, height)):
            raise ValueError(f"box {box} does not lie in a part of {width} x {height}")
        if not (1 <= encode.quality <= 100 and encode.interval >= 1):
            raise ValueError(f"quality {encode.quality}, interval {encode.interval}")


def cancelled_with(task: Task, loading: Future[None]) -> None:
    """Let a task end with what was to load its face."""
    if loading.cancelled():
        task.future.cancel()


def finish_all(pairs: Iterable[tuple[Task, Any]]) -> None:
    """Give tasks what was made of them; their futures end with what they make of that."""
    for task, made in pairs:
        future = task.future
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = task.finish(made)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
