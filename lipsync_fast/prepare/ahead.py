# SPDX-License-Identifier: Apache-2.0
"""An iterator whose items are made ahead, by a thread of its own, in their order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

from lipsync_fast.closing import Closing

T = TypeVar("T")


class Ahead(Closing, Generic[T]):
    """Goes through ``items`` in a thread, which is up to ``most`` items ahead of who asks for them.

    What ``items`` raises is raised where its item would have been. ``close`` ends the thread, and
    returns when it has ended: nobody goes through ``items`` any more. It must be called.
    """

    def __init__(self, items: Iterator[T], most: int) -> None:
        self._items = items
        self._made: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(most - 1)
        self._over = False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items:
                self._made.put((item,))
                del item  # pictures are large
                self._room.acquire()
                if self._over:
                    return
        except BaseException as error:
            self._made.put(error)
        else:
            self._made.put(None)

    def __iter__(self) -> Iterator[T]:
        while (made := self._made.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            self._room.release()
            yield made[0]
            del made

    def close(self) -> None:
        """End the thread; twice is harmless."""
        self._over = True
        self._room.release()
        self._thread.join()
