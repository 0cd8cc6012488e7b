# SPDX-License-Identifier: Apache-2.0
"""The stream port: WebSocket at any path, by websockets' server for trio."""

from __future__ import annotations

import logging
import socket as sockets
from typing import Any, Literal, cast

import trio
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.trio.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from lipsync_fast.config import Listen
from lipsync_fast.duplex import DuplexServerConnection
from lipsync_fast.errors import SocketClosedError
from lipsync_fast.frontend.access.clients import (
    NO_GATEWAY,
    behind_gateway,
    is_gateway,
)
from lipsync_fast.frontend.access.door import KEPT, KEPT_FOR_HTTP, Door
from lipsync_fast.frontend.access.places import BESIDE_SESSIONS, BESIDE_SHARE, Place, Places
from lipsync_fast.frontend.access.secure import Security
from lipsync_fast.frontend.listen.connections import Connections
from lipsync_fast.frontend.services import Services
from lipsync_fast.origins import client_address
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import ANYONE, Subject
from lipsync_fast_client.protocol import SUBPROTOCOL

SEND_BUFFER = 256 << 10
"""The kernel's, for a connection: what a slow reader has not read beyond it is noticed."""
PING_S, PONG_S = 20.0, 20.0
CLOSE_S = 2.0
INNER = "127.0.0.1"
"""Where the gateway comes from."""
QUEUED = 4
"""Messages of a client that are read before they are asked for."""


class _Connection(DuplexServerConnection):
    """A connection that has a place, from when it is accepted until it is closed."""

    place: Place
    subject: Subject

    async def recv_events(self) -> None:
        try:
            await super().recv_events()
        finally:
            self.place.release()


class StreamSocket:
    """A connection of websockets as ``access.socket.Socket``."""

    kind: Literal["stream"] = "stream"
    is_call = False

    def __init__(
        self,
        connection: DuplexServerConnection,
        port: int,
        peer: str = "",
        subject: Subject = ANYONE,
    ) -> None:
        self._connection, self.port, self.peer = connection, port, peer
        self.subject = subject
        self.subprotocol: str | None = connection.subprotocol

    def header(self, name: str) -> str | None:
        """A header of its upgrade."""
        request = self._connection.request
        return None if request is None else _header(request, name)

    async def receive(self) -> str | bytes:
        """The next message."""
        try:
            return await self._connection.recv()
        except ConnectionClosed:
            raise SocketClosedError from None

    async def send(self, data: str | bytes) -> None:
        """Send a message; returns when the kernel has taken it."""
        try:
            await self._connection.send(data)
        except ConnectionClosed:
            raise SocketClosedError from None

    def send_now(self, data: str | bytes) -> bool:
        """Send a message as far as the kernel takes it."""
        return self._connection.send_now(data)

    @property
    def unsent(self) -> bool:
        """The kernel has not taken all of it."""
        return self._connection.unsent

    async def flush(self) -> None:
        """Send the rest."""
        try:
            await self._connection.flush()
        except ConnectionClosed:
            raise SocketClosedError from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        await self._connection.aclose(code, reason)


def peer_of(
    connection: ServerConnection, request: Request, listen: Listen, inner: bool = False
) -> str:
    """The client's address, without its port; nothing where the gateway asks for itself."""
    # Of several such headers the last one is the nearest proxy's.
    forwarded = ",".join(request.headers.get_all("X-Forwarded-For")) or None
    if inner:
        return behind_gateway(listen, forwarded) or ""
    address = connection.remote_address
    peer = str(address[0]) if isinstance(address, tuple) else ""
    return client_address(listen, peer, forwarded)


async def serve_stream(
    listener: sockets.socket,
    services: Services,
    connections: Connections,
    security: Security,
    secret: str | None = None,
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a listening socket until cancelled.

    Args:
        security: what connections are greeted with.
        secret: the gateway's, where the socket is for it alone. Its connections are its clients':
            their addresses, tokens and shares count. Without a client it asks for itself, and may.
    """
    inner = secret is not None
    listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER)
    listener.setblocking(False)
    port = int(listener.getsockname()[1])
    limits = services.config.limits

    async def handle(connection: ServerConnection) -> None:
        assert isinstance(connection, _Connection)
        assert connection.request is not None
        connection.place.works()
        peer = peer_of(connection, connection.request, services.config.listen, inner)
        socket = StreamSocket(connection, port, peer, connection.subject)
        socket.is_call = inner and connection.subprotocol != SUBPROTOCOL
        await connections.serve(socket)

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        def header(name: str) -> str | None:
            return _header(request, name)

        listen = services.config.listen
        peer = peer_of(connection, request, listen, inner)
        if secret is not None and not is_gateway(secret, header):
            return refuse(NO_GATEWAY, peer)
        # The gateway asks for itself without a client, and may; or for who has asked it to.
        found: Subject | Refusal = ANYONE
        counts = not inner or _is_session(request)
        if peer or not inner or header("Authorization") is not None:
            found = services.entrance.admit(header, request.path, peer)
        if isinstance(found, Refusal):
            return refuse(found, peer)
        full = connections.refusal(found, peer, counts)
        if full is not None:
            return refuse(full, peer, found)
        assert isinstance(connection, _Connection)
        connection.subject = found
        return None

    def refuse(refusal: Refusal, peer: str, subject: Subject = ANYONE) -> Response:
        services.note_refused(refusal, peer, subject)
        return _refused(refusal)

    places = Places(
        limits.sessions + BESIDE_SESSIONS,
        limits.sessions_per_address + BESIDE_SHARE,
        0,
        # To the inner port all come from one address; each client's share is counted above.
        [INNER] if inner else services.config.listen.proxies,
    )
    placed: dict[trio.abc.Stream, Place] = {}

    def admits(stream: trio.SocketStream) -> bool:
        place = places.take(_address_of(stream), stream.socket.close)
        if place is not None:
            placed[stream] = place
        return place is not None

    def connect(
        nursery: trio.Nursery, stream: trio.SocketStream, *others: Any, **named: Any
    ) -> _Connection:
        connection = _Connection(nursery, security.over(stream), *others, **named)
        connection.place = placed.pop(stream)
        connection.on_chatter = lambda: services.statistics.count_error("chatter")
        return connection

    door = Door(
        trio.SocketListener(trio.socket.from_stdlib_socket(listener)),
        lambda: services.statistics.count_refused("connection"),
        KEPT + KEPT_FOR_HTTP,
        admits,
        security.is_on,
    )
    await serve(
        handle,
        listeners=[cast(Any, door)],
        select_subprotocol=_subprotocol,
        compression=None,
        process_request=admit,
        server_header=None,
        open_timeout=limits.handshake_s,
        ping_interval=PING_S,
        ping_timeout=PONG_S,
        close_timeout=CLOSE_S,
        max_size=limits.message_bytes,
        max_queue=QUEUED,
        logger=_logger(),
        create_connection=cast(Any, connect),
        task_status=task_status,
    )


def _header(request: Request, name: str) -> str | None:
    values = request.headers.get_all(name)  # one that came twice is one of no peer of ours
    return ", ".join(values) if values else None


def _is_session(request: Request) -> bool:
    """Whether the gateway asks for a session; for a call, it opens connections as it needs them."""
    return any(SUBPROTOCOL in each for each in request.headers.get_all("Sec-WebSocket-Protocol"))


def _address_of(stream: trio.SocketStream) -> str:
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:  # it has gone already
        return ""


def _subprotocol(connection: ServerConnection, offered: object) -> Subprotocol | None:
    """Ours where it is offered, else none: clients of old know none, and strangers get no error."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in list(offered) else None  # type: ignore[call-overload]


def _refused(refused: Refusal) -> Response:
    body = (refused.message + "\n").encode()
    headers = Headers()
    headers["Content-Type"] = "text/plain; charset=utf-8"
    headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    headers.update(refused.headers)
    return Response(refused.status, "", headers, body)


def _logger() -> logging.Logger:
    """What strangers do to a port is no news: only defects of ours are logged."""
    logger = logging.getLogger("lipsync.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
