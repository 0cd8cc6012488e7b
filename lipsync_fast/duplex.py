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
from lipsync_fast.turns import InTurns, SocketLike, Turn
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
        self.direct = (InTurns,) if isinstance(stream, trio.SocketStream) else ()
        super().__init__(nursery, InTurns(below, self._turn), *others, **named)

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
