# SPDX-License-Identifier: Apache-2.0
"""A client of /ws as the protocols see it."""

from __future__ import annotations

from typing import Literal

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from lipsync_fast.errors import SocketClosedError
from lipsync_fast.tokens.subject import Subject

LONGEST_REASON = 123
"""Bytes, of a close frame's reason."""


class HttpSocket:
    """A Starlette WebSocket, accepted, as ``access.socket.Socket``."""

    kind: Literal["http"] = "http"
    is_call = False
    unsent = False

    def __init__(
        self, websocket: WebSocket, subprotocol: str | None, peer: str, subject: Subject
    ) -> None:
        self._websocket, self.subprotocol, self.peer = websocket, subprotocol, peer
        self.subject = subject
        server = websocket.scope.get("server")
        self.port = int(server[1] or 0) if server is not None else 0

    def header(self, name: str) -> str | None:
        """A header of its upgrade."""
        return ", ".join(self._websocket.headers.getlist(name)) or None

    async def receive(self) -> str | bytes:
        """The next message."""
        try:
            message = await self._websocket.receive()
        except WebSocketDisconnected:
            raise SocketClosedError from None
        if message["type"] == "websocket.disconnect":
            raise SocketClosedError
        text: str | None = message.get("text")
        return text if text is not None else bytes(message["bytes"])

    async def send(self, data: str | bytes) -> None:
        """Send a message; returns when the kernel has taken it."""
        try:
            if isinstance(data, str):
                await self._websocket.send_text(data)
            else:
                await self._websocket.send_bytes(data)
        except (WebSocketDisconnect, WebSocketDisconnected):
            raise SocketClosedError from None

    def send_now(self, data: str | bytes) -> bool:
        """Nothing is sent without waiting here."""
        return False

    async def flush(self) -> None:
        """There is nothing left to send."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame."""
        short = reason.encode()[:LONGEST_REASON].decode(errors="ignore")
        try:
            await self._websocket.close(code, short)
        except (WebSocketDisconnect, WebSocketDisconnected):
            return

    async def drain(self) -> None:
        """Read what still comes until the client has closed."""
        try:
            while True:
                await self.receive()
        except SocketClosedError:
            return
