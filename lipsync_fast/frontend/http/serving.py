# SPDX-License-Identifier: Apache-2.0
"""Connections to the HTTP port, by Hypercorn's trio worker.

Hypercorn speaks HTTP and WebSocket on a connection; accepting is done here, so that

- as many connections are open as are allowed, and more are closed at once;
- what breaks one connection is logged, and breaks no other;
- a client that takes nothing for ``SEND_S`` is cut off, and one that keeps sending behind our
  close frame too: Hypercorn itself would wait, and keep what comes, without end;
- all end at once when the server stops, though Hypercorn shields what it sends from cancellation.
"""

from __future__ import annotations

import logging
import socket as sockets
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from lipsync_fast.frontend.access.door import Door
from lipsync_fast.frontend.http.app import CLOSE_S, OnSocket, Video, create_app
from lipsync_fast.frontend.services import Services
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.front")
SEND_BUFFER = 256 << 10
"""The kernel's, for a connection: what a slow reader has not read beyond it is noticed."""
SEND_S = 20.0
"""To take a piece of an answer, or a message."""
SILENT_MS = 20_000
"""A peer whose machine does not answer for so long is gone."""
ALIVE_S = 15
"""After so long without anything a peer's machine is asked whether it is there: by TCP, since
Hypercorn's own pings would keep each connection's memory for one interval behind its end."""
CLOSE_BYTES = 1 << 20
"""What a client may send before it answers our close frame."""
QUEUED = 4
"""Messages of a client that are read before they are asked for."""
BESIDE_SESSIONS = 256
"""Connections beside those of sessions: the page's own, health checks, scrapers."""


async def serve_http(
    listener_fd: int,
    services: Services,
    on_socket: OnSocket,
    video: Video,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a listening socket until cancelled or stopped.

    Args:
        listener_fd: the socket, bound and listening; it is this function's from now on.
        services: the front's.
        on_socket: speaks with a client of /ws until it goes.
        video: the MP4 of an avatar's frames, by the name in a request.
        stop: ends all connections, and this function, when set.
    """
    listener = sockets.socket(fileno=listener_fd)
    listener.setblocking(False)
    # Accepted sockets inherit these.
    listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER)
    listener.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    listener.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, SILENT_MS)
    listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
    listener.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPIDLE, ALIVE_S)
    listener.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPINTVL, ALIVE_S // 3)
    limits = services.config.limits
    config = _config(limits.message_bytes, limits.handshake_s)
    app = ASGIWrapper(cast(Any, create_app(services, on_socket, video)))
    context = WorkerContext(None)
    most = limits.sessions + BESIDE_SESSIONS
    connections: set[_Connection] = set()

    async def serve(stream: trio.SocketStream) -> None:
        if len(connections) >= most:
            services.statistics.count_refused("connection")
            await trio.aclose_forcefully(stream)
            return
        connection = _Connection(stream)
        connections.add(connection)
        try:
            await TCPServer(app, config, context, ConnectionState({}), cast(Any, connection))
        except* Exception:
            log.exception("a connection has failed")
        finally:
            connections.discard(connection)
            connection.abort()

    async with trio.open_nursery() as nursery:
        listeners = [
            Door(
                trio.SocketListener(trio.socket.from_stdlib_socket(listener)),
                lambda: services.statistics.count_refused("connection"),
            )
        ]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        task_status.started()
        try:
            await stop.wait()
        finally:
            nursery.cancel_scope.cancel()
            for connection in connections:
                connection.abort()


def _config(message_bytes: int, handshake_s: float) -> Config:
    config = Config()
    config.accesslog = None
    # What strangers do to a port is no news; our own errors are logged where they happen.
    config.errorlog = logging.getLogger("lipsync.hypercorn")
    config.errorlog.setLevel(logging.CRITICAL)
    config.include_server_header = False
    config.h11_max_incomplete_size = 16 << 10
    # Also bounds how long a request's head may take.
    config.keep_alive_timeout = cast(Any, handshake_s)
    config.websocket_max_message_size = message_bytes
    config.max_app_queue_size = QUEUED
    return config


class _Connection:
    """A client's stream as Hypercorn uses it, with bounds."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self._websocket = False
        self._closing_until: float | None = None
        self._left = CLOSE_BYTES

    async def send_all(self, data: bytes) -> None:
        """Send, within SEND_S.

        Raises:
            trio.BrokenResourceError: the client has gone, or takes nothing.
        """
        if self._websocket and data[:1] == b"\x88":  # our close frame
            self._closing_until = trio.current_time() + CLOSE_S
        elif data.startswith(b"HTTP/1.1 101 "):
            self._websocket = True
        sent = False
        with trio.move_on_after(SEND_S):
            await self._stream.send_all(data)
            sent = True
        if not sent:
            self.abort()
            raise trio.BrokenResourceError(f"the client has taken nothing for {SEND_S:g} s")

    async def receive_some(self, most: int) -> bytes:
        """Receive; nothing more long after our close frame."""
        if self._closing_until is None:
            return bytes(await self._stream.receive_some(most))
        data = b""
        with trio.move_on_at(self._closing_until):
            data = bytes(await self._stream.receive_some(most))
        self._left -= len(data)
        return data if self._left > 0 else b""

    async def send_eof(self) -> None:
        """Say that nothing more is sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()

    def abort(self) -> None:
        """Close at once; what waits for the client ends. Twice is harmless."""
        self.socket.close()
