# SPDX-License-Identifier: Apache-2.0
"""A client's connection to the HTTP port, with an end to all that Hypercorn would wait for."""

from __future__ import annotations

import trio

from lipsync_fast.frontend.access.secure import SecureStream

SEND_S = 20.0
"""To take a piece of an answer, or a message."""
CLOSE_S = 2.0
"""How long a client may take to answer our close frame."""
CLOSE_BYTES = 1 << 20
"""What a client may send before it answers our close frame."""


class Connection:
    """A client's stream as Hypercorn uses it, with bounds.

    Attributes:
        peer: the address at its other end; empty where it has gone already.
        is_secure: TLS is spoken on it.
        is_lost: the client has vanished; False where it has said that it sends nothing more.
    """

    def __init__(self, stream: trio.SocketStream | SecureStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.peer = _peer_of(stream)
        self.is_secure = isinstance(stream, SecureStream)
        self.is_lost = False
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
            return await self._receive(most)
        data = b""
        with trio.move_on_at(self._closing_until):
            data = await self._receive(most)
        self._left -= len(data)
        return data if self._left > 0 else b""

    async def _receive(self, most: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(most))
        except trio.BrokenResourceError:
            self.is_lost = True
            raise

    async def send_eof(self) -> None:
        """Say that nothing more is sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()

    def abort(self) -> None:
        """Close at once; what waits for the client ends. Twice is harmless."""
        self.is_lost = True
        self.socket.close()


def _peer_of(stream: trio.SocketStream | SecureStream) -> str:
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return ""
