# SPDX-License-Identifier: Apache-2.0
"""A file whose content is used as long as it is the newest, without anybody having to say so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from lipsync_fast.errors import LipsyncError
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.tokens")
LOOK_S = 1.0
"""How often it is looked whether a file has changed, while it is used."""
T = TypeVar("T")


class Watched(Generic[T]):
    """What a file holds. It is looked at when it is asked for, once a second at most; a file that
    cannot be read any more leaves what it held before, and a line in the log.

    Args:
        path: of the file; a link to another one is followed.
        read: makes of it what is wanted; raises LipsyncError.
        clock: seconds.
    """

    def __init__(
        self, path: str, read: Callable[[str], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._read, self._clock = path, read, clock
        self._value: T | None = None
        self._seen: tuple[int, ...] = ()
        self._looked_at = float("-inf")

    def get(self) -> T | None:
        """What it holds; None where it never could be read."""
        now = self._clock()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            seen = _identity(self._path)
            if seen != self._seen:
                self._seen = seen
                self._take()
        return self._value

    def _take(self) -> None:
        changed = self._value is not None
        try:
            self._value = self._read(self._path)
        except LipsyncError as error:
            log.error("keys cannot be read; what was known before counts", reason=str(error))
            return
        if changed:
            log.info("keys were read again", file=self._path)


def _identity(path: str) -> tuple[int, ...]:
    """Differs when the file does; the same for all that are not there."""
    try:
        found = os.stat(path)
    except OSError:
        return (0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
