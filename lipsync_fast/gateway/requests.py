# SPDX-License-Identifier: Apache-2.0
"""What HTTP has in common here: where it listens, who asks, from which page, how much is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import BodyPartReader, web

from lipsync_fast.config import Listen
from lipsync_fast.errors import LipsyncError, PeerError
from lipsync_fast.gateway.fronts import Client, passed_on
from lipsync_fast.gateway.greeting import Greeting
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.origins import host_allowed, origin_allowed
from lipsync_fast.tokens.refusals import CODE, retry_after

KEPT_S = 15.0
"""How long a connection may be open on which nothing is asked."""
BODY_S = 30.0
"""How long a client may take to send what it asks."""
MOST_FIELD = 4_096
"""Bytes of a form's field that is no file."""
ASKED_WITH = "Authorization, Content-Type, If-Match, X-Lipsync-Fast-Avatar, traceparent, tracestate"
SHOWN = f"Link, Location, Retry-After, {CODE}"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def client_of(request: web.Request) -> Client:
    """Whose request it is."""
    return Client(
        address=request.remote or "",
        forwarded=passed_on(request.headers.getall("X-Forwarded-For", [])),
        authorization=passed_on(request.headers.getall("Authorization", [])[:1]),
        traceparent=passed_on(request.headers.getall("traceparent", [])),
        tracestate=passed_on(request.headers.getall("tracestate", [])),
    )


def check_place(listen: Listen, request: web.Request) -> None:
    """See that the server may be called like this, and by this page.

    Raises:
        PeerError: it may not.
    """
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    if not host_allowed(listen, host):
        raise PeerError("the server is not known by this name; see listen.origins", 403)
    if request.method not in ("GET", "HEAD") and not origin_allowed(listen, origin, host):
        raise PeerError("pages of this origin may not connect; see listen.origins", 403)


def let_in(listen: Listen, request: web.Request, answer: web.StreamResponse) -> None:
    """Tell a browser that a page of an allowed origin may read an answer."""
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Server"] = "lipsync-fast"
    origin = request.headers.get("Origin")
    if origin is None:
        return
    answer.headers["Vary"] = "Origin"
    if origin_allowed(listen, origin, request.headers.get("Host")):
        answer.headers["Access-Control-Allow-Origin"] = origin
        answer.headers["Access-Control-Expose-Headers"] = SHOWN


def preflight(methods: str) -> Handler:
    """What a browser is told that asks what may be done at a place: no secret, so no token."""
    headers = {
        "Allow": f"OPTIONS, {methods}",
        "Access-Control-Allow-Methods": methods,
        "Access-Control-Allow-Headers": ASKED_WITH,
        "Access-Control-Max-Age": "600",
    }

    async def options(request: web.Request) -> web.StreamResponse:
        return web.Response(status=204, headers=headers)

    return options


def refused(error: PeerError) -> web.Response:
    """An error as an answer: one line."""
    headers = {CODE: error.reason} if error.reason else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif error.status in (429, 503):
        headers["Retry-After"] = retry_after(error.retry_s)
    return web.Response(status=error.status, text=f"{error}\n", headers=headers)


async def listen(
    runner: web.AppRunner, spec: GatewaySpec, ports: list[int], what: str, greeting: Greeting | None
) -> None:
    """Have an application answer on ports that are kept for it, by TLS where there is a greeting.

    Raises:
        LipsyncError: a port cannot be had.
    """
    servers: list[asyncio.Server] = []

    async def close(_: web.Application) -> None:
        for server in servers:
            server.close()

    runner.app.on_shutdown.append(close)
    await runner.setup()
    assert runner.server is not None
    # Not aiohttp's TCPSite, which gives everybody a minute for the handshake.
    tls: dict[str, Any] = {}
    if greeting is not None:
        seconds = spec.config.limits.handshake_s
        tls = {"ssl": greeting.context, "ssl_handshake_timeout": seconds}
    for port in ports:
        try:
            servers.append(
                await asyncio.get_running_loop().create_server(
                    runner.server, spec.host, port, reuse_port=True, **tls
                )
            )
        except OSError as error:
            where = f"{spec.host} port {port}"
            raise LipsyncError(f"{what} cannot listen on {where}: {error.strerror}") from None


async def body(request: web.Request, most: int) -> bytes:
    """All that a request brings.

    Raises:
        PeerError: it is too much, or comes too slowly.
    """
    return await _read(request.content.readany, most)


async def form(request: web.Request, most: int) -> dict[str, bytes]:
    """The fields of a form, by name; of several of a name, the last.

    Args:
        most: bytes of the field "file"; others have up to ``MOST_FIELD``.

    Raises:
        PeerError: it is none, too large, or comes too slowly.
    """
    found: dict[str, bytes] = {}
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or len(found) >= 16:
                raise PeerError("this is no form with a file")
            limit = most if part.name == "file" else MOST_FIELD
            found[part.name or ""] = await _read(part.read_chunk, limit)
    except (AssertionError, ValueError, RuntimeError):
        raise PeerError("this is no form (multipart/form-data)") from None
    return found


async def _read(more: Callable[[], Awaitable[bytes]], most: int) -> bytes:
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while piece := await more():
                found += piece
                if len(found) > most:
                    raise PeerError(f"that is too large: at most {most} bytes", 413)
    except TimeoutError:
        raise PeerError(f"not sent within {BODY_S:g} s", 408) from None
    return bytes(found)
