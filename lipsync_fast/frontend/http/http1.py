# SPDX-License-Identifier: Apache-2.0
"""Hypercorn's server of one connection, with HTTP/1.1 and WebSocket alone, and ends to waiting.

What has been received of a WebSocket is parsed in slices, so that others have their turn.

Hypercorn also begins to speak HTTP/2 where a client's first bytes are its preface, or where it asks
to be upgraded to it. From then on nothing bounds how long a connection may be silent, and what is
made for streams that nobody reads is kept. Browsers speak HTTP/2 over TLS only, and that ends at a
proxy in front; so the preface ends the connection here, and the upgrade is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.config import Config
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from lipsync_fast.frontend.access.places import RESERVED, Place
from lipsync_fast.frontend.http.connection import SEND_S, Connection
from lipsync_fast.turns import SLICE, Turn

if TYPE_CHECKING:
    import h11

GONE_S = 1.0
"""How long what was begun for a client may go on that has vanished; where it has only said that it
sends no more, it may still read the answer, for ``SEND_S``."""
TURN = "lipsync_fast.turn"
"""In a request's state: the ``Turn`` of its connection."""


class _Http2Error(Exception):
    """The client begins to speak HTTP/2."""


class _Http1Protocol(H11Protocol):
    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI":
            raise _Http2Error

    async def handle(self, event: Event) -> None:
        if not isinstance(event, RawData) or not isinstance(self.connection, H11WSConnection):
            await super().handle(event)
            return
        for start in range(0, len(event.data), SLICE):
            await self.connection_state[TURN].give_way()
            if self.stream is None:  # the WebSocket has ended
                break
            await super().handle(RawData(event.data[start : start + SLICE]))


class Http1Server(TCPServer):
    """One connection, from its first byte to its end."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        connection: Connection,
        place: Place,
    ) -> None:
        state = ConnectionState({RESERVED: place.reserved, TURN: Turn()})
        super().__init__(app, config, context, state, cast(Any, connection))
        self._connection, self._place = connection, place

    async def run(self) -> None:
        """Serve it until either side ends it, then for a bounded time what it has begun."""
        socket = self._connection.socket
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with trio.open_nursery() as nursery:
                tasks = TaskGroup()
                tasks._nursery = self._nursery = nursery
                self._task_group = tasks
                self.protocol = cast(Any, self._http1(tasks, client, server))
                await self.idle_task.restart(tasks, self._idle_timeout)
                try:
                    await self._read_data()
                except _Http2Error:
                    self._connection.abort()
                await self.idle_task.stop()
                left = GONE_S if self._connection.is_lost else SEND_S
                nursery.cancel_scope.deadline = trio.current_time() + left
        except OSError:
            pass
        finally:
            await self._close()

    def _http1(
        self,
        tasks: TaskGroup,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
    ) -> _Http1Protocol:
        state = ConnectionState(self.state)
        return _Http1Protocol(
            self.app,
            self.config,
            self.context,
            tasks,
            state,
            self._connection.is_secure,
            client,
            server,
            self.protocol_send,
        )

    async def protocol_send(self, event: Event) -> None:
        """What Hypercorn has to send, or to say of the connection."""
        if isinstance(event, Updated):
            if event.idle:
                self._place.waits()
            else:
                self._place.works()
        await super().protocol_send(event)
