# SPDX-License-Identifier: Apache-2.0
"""Whether there is room: for one more connection, and for one more that speaks.

Who listens costs little; who speaks costs what engines can make. So an utterance begins only where
fewer speak, in all fronts, than the engines' measured capacity allows; and where they are not
nearly all from one address, which could keep everybody else from speaking.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import trio

from lipsync_fast import canonical
from lipsync_fast.config import Limits
from lipsync_fast.frontend.access.network_counts import NetworkCounts
from lipsync_fast.ipc.status import FrontLoad
from lipsync_fast.tokens.refusals import RETRY_S

Result = TypeVar("Result")
SHARED_FROM = 4
"""With so many places for speakers, one address may not take all of them."""


class Admission:
    """Decides for one front. One thread.

    Args:
        limits: see ``config.Limits``.
        load: what the front does now; who speaks is counted here, all else is only read.
        proxies: addresses, or networks, that others come from who are not told of.
        elsewhere: how many sessions of an address speak in other fronts.
    """

    def __init__(
        self,
        limits: Limits,
        load: FrontLoad,
        proxies: Collection[str] = (),
        elsewhere: Callable[[str], int] = lambda address: 0,
    ) -> None:
        self._limits, self._load, self._proxies = limits, load, proxies
        self._elsewhere = elsewhere
        self._speaking_of = NetworkCounts()
        """Those that speak, by their address."""
        self.speakers = 1
        """How many sessions may speak at once, in all fronts."""
        self.others = 0
        """How many speak in other fronts."""
        self.others_encoding = 0.0
        """What is encoded for them there, counted in speakers."""
        self.draining = trio.Event()
        """Set once the server is going away: what has begun is finished, and nothing new begins."""

    def apply_update(self, speakers: int, others: int, encoding: float = 0.0) -> None:
        """The supervisor has said how many may speak, and what is done elsewhere."""
        self.speakers, self.others = max(1, speakers), others
        self.others_encoding = encoding

    def speech_refusal(self, address: str, encoding: float = 0.0) -> str | None:
        """Why one more session of an address may not begin to speak now; None where it may.

        Args:
            encoding: what encoding its pictures costs, in speakers.
        """
        if self.draining.is_set():
            return "the server is going away"
        speaking = self._load.speaking + self.others
        encoded = self._load.encoding + self.others_encoding + encoding
        if speaking and speaking + encoded + 1 > self.speakers:
            return "as many sessions speak as this server can serve"
        speaking = self._speaking_of[canonical.network(address)] + self._elsewhere(address)
        if speaking >= self._share(address):
            return "as many speak from this address as may; see limits.speakers_per_address"
        return None

    def _share(self, address: str) -> int:
        """How many of an address may speak."""
        configured = self._limits.speakers_per_address
        own = canonical.is_loopback(address) or canonical.is_among(address, self._proxies)
        if configured or self.speakers < SHARED_FROM or own:
            return configured or self.speakers
        return self.speakers - math.ceil(self.speakers / 4)

    def begin_speech(self, address: str, encoding: float = 0.0) -> None:
        """A session speaks: it has a place, until ``end_speech`` with the same."""
        self._load.speaking += 1
        self._load.encoding += encoding
        self._speaking_of[canonical.network(address)] += 1

    def end_speech(self, address: str, encoding: float = 0.0) -> None:
        """It speaks no more."""
        self._load.speaking -= 1
        self._load.encoding = self._load.encoding - encoding if self._load.speaking else 0.0
        self._speaking_of.give_back(canonical.network(address))

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
