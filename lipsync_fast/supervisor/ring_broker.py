# SPDX-License-Identifier: Apache-2.0
"""The rings of each pair of front and engine: made, handed to both, forgotten.

Memory for a pair is taken as soon as both were started, in a thread, since that takes a while; it
is handed out when the front is there and the engine is ready. Then this process closes its copies,
so that rings end with the last of the two that hold them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
from collections.abc import Callable, Iterator

import trio

from lipsync_fast.errors import RingError
from lipsync_fast.ipc.ring import RingHandle
from lipsync_fast.logs import get_logger
from lipsync_fast.signals import WakeUp
from lipsync_fast.supervisor.children import Child

JOB_RING = 8 << 20
ANSWER_RING, GPU_ANSWER_RING = 16 << 20, 64 << 20
"""Bytes: a second of pictures, and more, from a CPU engine; a third of a second from a GPU's, which
its fronts share. Larger ones cost: making, taking and dropping them takes 2 ms for each MB."""
RETRY_S = 1.0

log = get_logger("lipsync.supervisor")
Key = tuple[str, str]
RingPair = tuple[RingHandle, RingHandle]
"""One ring for jobs, one for answers."""


def answer_ring(device: str, fronts: int) -> int:
    """Bytes of an answer ring from an engine on a device, with so many fronts; a power of two."""
    if device == "cpu":
        return ANSWER_RING
    return max(ANSWER_RING, GPU_ANSWER_RING >> (fronts - 1).bit_length())


class RingBroker:
    """Makes rings for each pair of front and engine, and hands them to both.

    Args:
        children: all that live now.
        fronts: how many there are to be.
        on_delivered: called when some were handed out.
        on_failed: called with the reason when some cannot be made; they are tried again.
    """

    def __init__(
        self,
        children: Callable[[], list[Child]],
        fronts: int,
        on_delivered: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._children = children
        self._on_delivered, self._on_failed = on_delivered, on_failed
        self._fronts = fronts
        self._generations = itertools.count(1)
        self._made: dict[Key, RingPair] = {}
        self._delivered: set[Key] = set()
        self._bell = WakeUp()

    @property
    def any_delivered(self) -> bool:
        """Whether some front can reach some engine."""
        return bool(self._delivered)

    def on_children_changed(self) -> None:
        """A child was started, or has become ready."""
        self._bell.ring()

    def forget(self, child: Child) -> None:
        """A child has died."""
        for key in [key for key in self._made if child.name in key]:
            self._close(self._made.pop(key))
        self._delivered = {key for key in self._delivered if child.name not in key}

    async def run(self) -> None:
        """Make and hand out rings until cancelled."""
        while True:
            self._bell.clear()
            made = True
            while (missing := self._most_urgent()) is not None and made:
                made = await self._make(*missing)
                self._deliver()
            self._deliver()
            with trio.move_on_after(float("inf") if made else RETRY_S):
                await self._bell.wait()

    def _pairs(self) -> list[tuple[Child, Child]]:
        living = self._children()
        fronts = [c for c in living if c.role == "front"]
        engines = [c for c in living if c.role == "engine"]
        return [(front, engine) for front in fronts for engine in engines]

    def _most_urgent(self) -> tuple[Child, Child] | None:
        """A pair without rings, the most urgent first."""
        missing = [
            (front, engine)
            for front, engine in self._pairs()
            if (front.name, engine.name) not in self._delivered | self._made.keys()
        ]
        return min(missing, key=lambda pair: not pair[1].is_working, default=None)

    async def _make(self, front: Child, engine: Child) -> bool:
        generation = next(self._generations)
        try:
            size = answer_ring(engine.device, self._fronts)
            pair = await trio.to_thread.run_sync(_create, generation, size, engine.slot.processors)
        except RingError as error:
            log.error(
                "no rings; trying again", front=front.name, engine=engine.name, reason=str(error)
            )
            self._on_failed(str(error))
            return False
        if "gone" in (front.state, engine.state):
            self._close(pair)
        else:
            self._made[front.name, engine.name] = pair
        return True

    def _deliver(self) -> None:
        for front, engine in self._pairs():
            key = front.name, engine.name
            if key in self._made and front.greeted and engine.is_working:
                pair = self._made.pop(key)
                for child, peer in ((engine, front), (front, engine)):
                    taken = child.rings.offer(peer.name, *pair)
                    if not taken and not _has_gone(child):
                        child.kill("it does not take its rings")
                self._close(pair)
                self._delivered.add(key)
                self._on_delivered()

    @staticmethod
    def _close(pair: RingPair) -> None:
        for handle in pair:
            handle.close()

    def close(self) -> None:
        """Close all that was not handed out."""
        for pair in self._made.values():
            self._close(pair)
        self._made.clear()


def _create(generation: int, answer_bytes: int, near: tuple[int, ...]) -> RingPair:
    """Both rings of a pair, their memory taken from the node of these processors."""
    with _pinned_to(near):
        jobs = RingHandle.create(JOB_RING, generation)
        try:
            return jobs, RingHandle.create(answer_bytes, generation)
        except RingError:
            jobs.close()
            raise


@contextlib.contextmanager
def _pinned_to(processors: tuple[int, ...]) -> Iterator[None]:
    """Keep the calling thread on some processors; on all that it had where none are named."""
    before = os.sched_getaffinity(0)
    if processors:
        os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _has_gone(child: Child) -> bool:
    """Whether a child has closed its end, as it does when it dies: its death will be heard of."""
    poll = select.poll()
    poll.register(child.rings.fileno(), 0)  # a hang-up is told unasked
    return bool(poll.poll(0))
