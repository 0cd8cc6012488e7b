# SPDX-License-Identifier: Apache-2.0
"""The server's end of a WebSocket, which reads while it sends: ``lipsync_fast_client.duplex``.

It shares its thread with all others: what is received is parsed in slices, and a peer that sends
pings, pongs and empty frames without end is closed (``turns``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import trio
from websockets.exceptions import ConnectionClosed
from websockets.frames import CTRL_OPCODES, Frame
from websockets.trio.server import ServerConnection

from lipsync_fast import turns
from lipsync_fast.turns import Encrypting, InTurns, SocketLike, Turn
from lipsync_fast_client.duplex import Duplex


class DuplexServerConnection(Duplex, ServerConnection):
    """A server's connection that reads while it sends, and leaves others their turn.

    Its peer has to read, too, and to say something with what it sends.

    Attributes:
        on_chatter: called when it is closed for saying nothing too often.
    """

    unread_s = 40.0
    on_chatter: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self, nursery: trio.Nursery, stream: trio.abc.Stream, *others: Any, **named: Any
    ) -> None:
        self._turn, self._chatters = Turn(), False
        # The library knows no other stream with a socket; it asks ours for its addresses below.
        below = cast(SocketLike, stream)
        self._socket = below.socket
        self._encrypting = (
            None if isinstance(stream, trio.SocketStream) else cast(Encrypting, stream)
        )
        super().__init__(nursery, InTurns(below, self._turn), *others, **named)

    # ------------------------------------------------------------ sending without waiting
    @property
    def _is_direct(self) -> bool:
        return self._encrypting is None or self._encrypting.is_free

    def _write_now(self, message: bytes) -> bytes:
        if self._encrypting is None:
            return super()._write_now(message)
        self._encrypting.send_now(message)
        return b""

    @property
    def unsent(self) -> bool:
        """The kernel did not take all of what ``send_now`` has begun."""
        return super().unsent or (self._encrypting is not None and self._encrypting.unsent)

    async def _send_rest(self) -> None:
        if self._encrypting is not None and self._encrypting.unsent:
            await self._send_piece(b"")

    # ------------------------------------------------------------ both ends
    @property
    def local_address(self) -> Any:
        """This end's."""
        return self._socket.getsockname()

    @property
    def remote_address(self) -> Any:
        """The peer's."""
        return self._socket.getpeername()

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame):
            empty = event.opcode in CTRL_OPCODES or not event.data
            if self._turn.count(empty) and not self._chatters:
                self._chatters = True
                self.on_chatter()
                self.nursery.start_soon(self._end_chatter)
        super().process_event(event)

    async def _end_chatter(self) -> None:
        """Say why, parse no more of it, and close."""
        with contextlib.suppress(ConnectionClosed):
            async with self.send_context():
                self.protocol.fail(turns.CHATTER, turns.WHY)
