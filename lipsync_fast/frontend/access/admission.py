# SPDX-License-Identifier: Apache-2.0
"""Whether there is room: for one more connection, and for one more that speaks.

Who listens costs little; who speaks costs what engines can make. So an utterance begins only where
fewer speak, in all fronts, than the engines' measured capacity allows.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from lipsync_fast.config import Limits
from lipsync_fast.ipc.status import FrontLoad

Result = TypeVar("Result")
RETRY_S = 2.0
"""How long a client that was refused is asked to wait."""


class Admission:
    """Decides for one front. One thread.

    Args:
        limits: see ``config.Limits``.
        load: what the front does now; it is only read.
    """

    def __init__(self, limits: Limits, load: FrontLoad) -> None:
        self._limits, self._load = limits, load
        self.speakers = 1
        """How many sessions may speak at once, in all fronts."""
        self.others = 0
        """How many speak in other fronts."""
        self.draining = trio.Event()
        """Set once the server is going away: what has begun is finished, and nothing new begins."""

    def apply_update(self, speakers: int, others: int) -> None:
        """The supervisor has said how many may speak, and how many do elsewhere."""
        self.speakers, self.others = max(1, speakers), others

    def may_speak(self) -> bool:
        """Whether one more session may begin to speak now."""
        return self._load.speaking + self.others < self.speakers and not self.draining.is_set()

    @property
    def retry_s(self) -> float | None:
        """Seconds after which to try again, where no more connections are taken now."""
        return RETRY_S if self.full or self.draining.is_set() else None

    @property
    def full(self) -> bool:
        """As many are connected as may be."""
        return self._load.connections >= self._limits.sessions

    async def unless_draining(self, wait: Callable[[], Awaitable[Result]]) -> Result | None:
        """What ``wait`` gives; None as soon as the server drains."""
        result: Result | None = None
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def until_drained() -> None:
                await self.draining.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_drained)
            try:
                result = await wait()
            except Exception as error:  # raised below: a nursery would wrap it
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return result


def retry_after(seconds: float) -> str:
    """The value of a Retry-After header."""
    return str(max(1, math.ceil(seconds)))
