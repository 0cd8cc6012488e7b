# SPDX-License-Identifier: Apache-2.0
"""One picture for one question, outside of any session's clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

import trio

from lipsync_fast.arrays import F32
from lipsync_fast.errors import EngineLostError, LipsyncError, OverloadedError
from lipsync_fast.frontend.engines.engine_link import Pending
from lipsync_fast.frontend.engines.numbers import JobNumbers
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Job, Look, Speech, Status
from lipsync_fast.timing import NS_PER_S

REQUEST_NS = 10 * NS_PER_S
"""A single request is answered within this, or fails."""
MOST_REQUESTS = 512
"""Single requests that may wait in this front."""


@dataclass(frozen=True, slots=True)
class Made:
    """A picture, as an engine made it.

    Attributes:
        jpeg: the picture.
        box: where it lies in the avatar's frame.
        taken_ns, made_ns: when the engine took the job up and was done, CLOCK_MONOTONIC.
    """

    jpeg: bytes
    box: Rect
    taken_ns: int
    made_ns: int


class SingleRequests:
    """Those of a front: each gets its picture or an error, within ``REQUEST_NS``."""

    def __init__(self, pool: EnginePool, numbers: JobNumbers) -> None:
        self._pool, self._numbers = pool, numbers
        self._waiting = 0

    async def make(
        self,
        avatar: str,
        avatar_frame: int,
        look: Look,
        speech: Speech | None,
        pcm: F32,
        session: int = 0,
    ) -> Made:
        """Have one picture made, whatever happens to engines meanwhile.

        Args:
            avatar: the key of a version that is leased.
            avatar_frame: index of the avatar's frame.
            look: how it is encoded.
            speech: what is said; None for the avatar's own picture.
            pcm: the samples that ``speech`` sees, 16 kHz mono.
            session: from ``JobNumbers``: keeps a client's pictures at one engine, whose caches
                know its sound; 0 for none.

        Raises:
            OverloadedError: too many wait already.
            EngineLostError: none could make it in time.
            LipsyncError: it cannot be made; says why.
        """
        if self._waiting >= MOST_REQUESTS:
            raise OverloadedError(f"more than {MOST_REQUESTS} requests wait; try again later")
        self._waiting += 1
        done = trio.Event()
        result: list[tuple[Answer, bytes]] = []

        def answered(answer: Answer, jpeg: memoryview) -> None:
            result.append((answer, bytes(jpeg)))
            done.set()

        deadline_ns = time.monotonic_ns() + REQUEST_NS
        number = self._numbers.stream()  # any number that is new
        job = Job(session, 0, number, avatar, avatar_frame, deadline_ns, look, speech)
        self._pool.submit(Pending(job, pcm, answered, lambda job: job))
        try:
            with trio.move_on_after(REQUEST_NS / NS_PER_S + 1):
                await done.wait()
        finally:
            self._waiting -= 1
        if not result or result[0][0].status == Status.SKIPPED:
            raise EngineLostError(
                f"no engine has made the picture within {REQUEST_NS // NS_PER_S} s"
            )
        answer, jpeg = result[0]
        if answer.status == Status.FAILED:
            raise LipsyncError(answer.reason)
        return Made(jpeg, answer.box, answer.taken_ns, answer.made_ns)
