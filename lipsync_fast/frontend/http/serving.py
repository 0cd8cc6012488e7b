# SPDX-License-Identifier: Apache-2.0
"""Connections to the HTTP port, by Hypercorn's trio worker.

Hypercorn speaks HTTP/1.1 and WebSocket on a connection (``http1``); accepting is done here, so that

- as many connections are open as are allowed, of each address its share; where there is no room,
  who has waited longest without a request makes it (``places``);
- what breaks one connection is logged, and breaks no other;
- each state of a connection has an end: a head that does not come within the handshake's time, an
  answer of which nothing is taken (``connection``), a close frame that is not answered;
- all end at once when the server stops, though Hypercorn shields what it sends from cancellation.
"""

from __future__ import annotations

import logging
import socket as sockets
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from lipsync_fast.frontend.access.door import Door
from lipsync_fast.frontend.access.places import BESIDE_SESSIONS, BESIDE_SHARE, Places
from lipsync_fast.frontend.access.secure import Security
from lipsync_fast.frontend.http.app import OnSocket, Video, create_app
from lipsync_fast.frontend.http.connection import Connection
from lipsync_fast.frontend.http.http1 import Http1Server
from lipsync_fast.frontend.services import Services
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.front")
SEND_BUFFER = 256 << 10
"""The kernel's, for a connection: what a slow reader has not read beyond it is noticed."""
SILENT_MS = 20_000
"""A peer whose machine does not answer for so long is gone."""
ALIVE_S = 15
"""After so long without anything a peer's machine is asked whether it is there: by TCP, since
Hypercorn's own pings would keep each connection's memory for one interval behind its end."""
QUEUED = 4
"""Messages of a client that are read before they are asked for."""
RESERVE = 16
"""Connections beyond all of these, for /health and /metrics alone."""


async def serve_http(
    listener_fd: int,
    services: Services,
    security: Security,
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
        security: what connections are greeted with.
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
    places = Places(
        limits.sessions + BESIDE_SESSIONS,
        limits.sessions_per_address + BESIDE_SHARE,
        RESERVE,
        services.config.listen.proxies,
    )
    connections: set[Connection] = set()

    async def serve(stream: trio.SocketStream) -> None:
        connection = Connection(security.over(stream))
        place = places.take(connection.peer, connection.abort)
        if place is None:
            services.statistics.count_refused("connection")
            connection.abort()
            return
        connections.add(connection)
        try:
            await Http1Server(app, config, context, connection, place)
        except* UnicodeError:  # a head that is no ASCII, of which Hypercorn makes no bad request
            services.statistics.count_refused("connection")
        except* Exception:
            log.exception("a connection has failed")
        finally:
            connections.discard(connection)
            connection.abort()
            place.release()

    async with trio.open_nursery() as nursery:
        listeners = [
            Door(
                trio.SocketListener(trio.socket.from_stdlib_socket(listener)),
                lambda: services.statistics.count_refused("connection"),
                secure=security.is_on,
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
