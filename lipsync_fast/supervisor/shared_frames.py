# SPDX-License-Identifier: Apache-2.0
"""Memory that CPU engines share for what they make of an avatar's frames: made, and handed out."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lipsync_fast.errors import RingError
from lipsync_fast.ipc.frame_store import FrameStore
from lipsync_fast.logs import get_logger
from lipsync_fast.supervisor.children import Child

log = get_logger("lipsync.supervisor")


class SharedFrames:
    """One piece of memory for each version of an avatar that is in use.

    It ends with the last engine that holds it. How much of it all of them fill together is the
    engines' affair.
    """

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def offer(self, engine: Child, keys: Iterable[str]) -> None:
        """Hand the memory of avatars to an engine that loads them."""
        if engine.slot.device != "cpu":
            return
        for key in keys:
            fd = self._fds.get(key)
            if fd is None:
                try:
                    fd = self._fds[key] = FrameStore.create()
                except RingError as error:
                    log.warning(
                        "no memory to share an avatar's frames", avatar=key, reason=str(error)
                    )
                    continue
            engine.rings.offer_frames(key, fd)

    def forget(self, key: str) -> None:
        """A version is no longer in use."""
        fd = self._fds.pop(key, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Forget all."""
        for key in list(self._fds):
            self.forget(key)
