# SPDX-License-Identifier: Apache-2.0
"""A server that does what a script says, for tests of clients; and both libraries to run them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from lipsync_fast_client.geometry import Rect
from lipsync_fast_client.protocol import (
    MediaHeader,
    MediaType,
    ServerMessage,
    SessionStarted,
    encode,
    pack_media,
)

STARTED = SessionStarted(
    session="s1",
    avatar="demo",
    width=8,
    height=6,
    fps=25,
    bounds=Rect(1, 2, 3, 4),
    latency_ms=321.0,
)
Script = Callable[[ServerConnection, list[Any]], None]
LIBRARIES = ["trio", "asyncio"]


def run(library: str, task: Callable[[], Awaitable[Any]]) -> Any:
    if library == "trio":
        import trio

        return trio.run(task)
    return asyncio.run(task())  # type: ignore[arg-type]


class Scripted:
    """A server that does what a script says, and notes what it is told."""

    def __init__(self, script: Script, status: int = 0, headers: dict[str, str] | None = None):
        self.heard: list[Any] = []
        self.offered: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.ended = threading.Event()
        self.status = status  # of refusals; none where it is 0

        def handle(connection: ServerConnection) -> None:
            try:
                self.heard.append(msgspec.json.decode(connection.recv(20)))
                script(connection, self.heard)
            except ConnectionClosed:
                pass
            finally:
                self.ended.set()

        def admit(connection: ServerConnection, request: Request) -> Response | None:
            self.headers.append(dict(request.headers.raw_items()))
            if not self.status:
                return None
            response = connection.respond(self.status, "no, thank you\n")
            for name, value in (headers or {}).items():
                response.headers[name] = value
            return response

        self.server = serve(
            handle, "127.0.0.1", 0, process_request=admit, subprotocols=["lipsync.v1"]
        )
        self.url = f"ws://127.0.0.1:{self.server.socket.getsockname()[1]}"


@contextmanager
def scripted(script: Script, status: int = 0, **headers: str) -> Iterator[Scripted]:
    server = Scripted(script, status, {k.replace("_", "-"): v for k, v in headers.items()})
    thread = threading.Thread(target=server.server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        thread.join(20)


def say(connection: ServerConnection, *messages: ServerMessage) -> None:
    for message in messages:
        connection.send(encode(message))


def media(kind: MediaType, payload: bytes, **fields: Any) -> bytes:
    return pack_media(MediaHeader(type=kind, size=len(payload), **fields)) + payload


def until_stop(connection: ServerConnection, heard: list[Any]) -> None:
    """Note messages until session.stop, then close as the server does."""
    for message in connection:
        heard.append(msgspec.json.decode(message) if isinstance(message, str) else message)
        if isinstance(heard[-1], dict) and heard[-1]["type"] == "session.stop":
            return


def quiet(connection: ServerConnection, heard: list[Any]) -> None:
    say(connection, STARTED)
    until_stop(connection, heard)
