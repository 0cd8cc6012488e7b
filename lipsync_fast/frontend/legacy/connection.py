# SPDX-License-Identifier: Apache-2.0
"""One connection of an old client.

    receive ─► read, locate its sound ─► worked on, up to ``requests_in_flight`` at a time
                    │                                   │
                    ▼                                   ▼
               its turn in the queue ───────────► sent in the order of the messages

Exactly one reply for each message. While as many wait to be made and sent as may be, nothing is
read from the client (back-pressure). When the server drains, what was asked is answered still.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from lipsync_fast.errors import LipsyncError, SocketClosedError
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.legacy.answers import Answers, Reply, Work, tells_stats
from lipsync_fast.frontend.legacy.counts import LegacyCounts
from lipsync_fast.frontend.services import Services
from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.accounts import Visit

log = get_logger("lipsync.old_clients")
STATS_S = 5.0
"""How often statistics are sent unasked."""
GOING_AWAY, POLICY = 1001, 1008


async def serve_legacy(
    socket: Socket, visit: Visit, services: Services, counts: LegacyCounts, first: Reply
) -> None:
    """Answer a client until it goes, says nothing for too long, or the server drains.

    Args:
        socket: the connection; visit: what counts what it uses.
        services: the front's.
        counts: of all connections of this kind.
        first: the message that was received already.
    """
    session = services.numbers.session()
    visit.protocol = "old"
    connection = _Connection(socket, services, Answers(socket, visit, services, counts, session))
    try:
        visit.why = await connection.run(first) or visit.why
    finally:
        services.pool.forget(session)
        connection.close()


@dataclass
class _QueuedReply:
    """A reply in the queue, made or to be made; ``unasked`` where no message waits for it."""

    reply: Reply = ""
    ready: trio.Event = field(default_factory=trio.Event)
    unasked: bool = False


class _Connection:
    def __init__(self, socket: Socket, services: Services, answers: Answers) -> None:
        self._socket, self._services = socket, services
        self._answers = answers
        limit = services.config.limits.requests_in_flight
        self._free = trio.Semaphore(limit, max_value=limit)
        # One more than may be in flight: statistics come unasked.
        self._queue, self._to_send = trio.open_memory_channel[_QueuedReply](limit + 1)
        self._reading, self._asides = trio.CancelScope(), trio.CancelScope()

    def close(self) -> None:
        """Let go of what it has used."""
        self._answers.close()

    async def run(self, first: Reply) -> str:
        """Until the end of the connection; why it was ended, unless the client has gone."""
        gone, why = False, (GOING_AWAY, "the server is going away")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, nursery.cancel_scope)
            nursery.start_soon(self._aside)
            try:
                with self._reading:
                    why = await self._read(first, nursery)
            except SocketClosedError:
                gone = True
                nursery.cancel_scope.cancel()
            self._asides.cancel()
            self._queue.close()  # what is in it is sent, then the writer ends
        if gone:
            return ""
        await self._socket.close(*why)
        return why[1]

    async def _read(self, first: Reply, nursery: trio.Nursery) -> tuple[int, str]:
        """Take messages; returns why no more are taken."""
        limit = self._services.config.limits.idle_s
        message = first
        await self._free.acquire()
        while True:
            queued = _QueuedReply()
            await self._queue.send(queued)
            nursery.start_soon(self._answer, queued, self._answers.read(message))
            await self._free.acquire()
            with trio.move_on_after(limit) as patience:
                message = await self._socket.receive()
            if patience.cancelled_caught:
                return POLICY, f"nothing was heard for {limit:g} s"

    async def _answer(self, queued: _QueuedReply, work: Work) -> None:
        statistics = self._services.statistics
        load = statistics.load
        try:
            queued.reply = await work.make()
        except LipsyncError as error:
            queued.reply = work.refuse(str(error))
            load.request_errors += work.request
        except Exception:  # a defect; the client still gets its one reply
            log.exception("a request has failed", peer=self._socket.peer)
            queued.reply = work.refuse("internal error")
            load.request_errors += work.request
            statistics.count_error("internal")
        queued.ready.set()

    async def _write(self, scope: trio.CancelScope) -> None:
        """Send what is ready, in order."""
        try:
            async for queued in self._to_send:
                await queued.ready.wait()
                await self._socket.send(queued.reply)
                if not queued.unasked:
                    self._free.release()
        except SocketClosedError:
            scope.cancel()

    async def _aside(self) -> None:
        """What happens without the client's asking."""
        with self._asides:
            async with trio.open_nursery() as nursery:
                if tells_stats(self._socket):
                    nursery.start_soon(self._tell_stats)
                await self._services.admission.draining.wait()
                self._reading.cancel()

    async def _tell_stats(self) -> None:
        while True:
            await trio.sleep(STATS_S)
            queued = _QueuedReply(unasked=True)
            queued.ready.set()
            queued.reply = self._answers.stats()
            await self._queue.send(queued)
