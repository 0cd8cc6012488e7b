# SPDX-License-Identifier: Apache-2.0
"""Memory that CPU engines share for what they make of an avatar's frames: made, and handed out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from lipsync_fast.engine.caches import within_memory
from lipsync_fast.errors import RingError
from lipsync_fast.ipc.frame_store import FrameStore
from lipsync_fast.supervisor.children import Child

MOST_BYTES, SHARE = 64 << 30, 1 / 4
"""Of all avatars; and of the machine's memory. Beyond it each engine keeps what it has room for."""

log = logging.getLogger("lipsync.supervisor")


class SharedFrames:
    """One piece of memory for each avatar in use. It ends with the last engine that holds it."""

    def __init__(self) -> None:
        self._limit = within_memory(MOST_BYTES, SHARE)
        self._fds: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """What all of them may come to: engines size them as they take them into use."""
        return sum(os.fstat(fd).st_size for fd in self._fds.values())

    def offer(self, engine: Child, names: Iterable[str]) -> None:
        """Hand the memory of avatars to an engine that loads them."""
        if engine.slot.device != "cpu":
            return
        for name in names:
            fd = self._fds.get(name)
            if fd is None:
                if self.bytes >= self._limit:
                    continue
                try:
                    fd = self._fds[name] = FrameStore.create()
                except RingError as error:
                    log.warning(str(error))
                    continue
            engine.rings.offer_frames(name, fd)

    def forget(self, name: str) -> None:
        """An avatar is no longer in use, or has become another one."""
        fd = self._fds.pop(name, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Forget all."""
        for name in list(self._fds):
            self.forget(name)
