# SPDX-License-Identifier: Apache-2.0
"""websockets' trio connections that read on while a message waits to be sent.

As they come, what has been received is followed by sending what it calls for (pongs, the answer to
a close), behind a message that is being sent. So an end that is held up in ``send`` stops reading;
where both ends are held up, neither ever goes on. Here the reader leaves what is to be sent to
whoever is sending.

And closing is bounded as a whole: as it comes, it waits without end for room to send its farewell
to a peer that reads nothing, and for a reader that waits for somebody to take what it has read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from websockets.frames import CloseCode
from websockets.trio.client import ClientConnection
from websockets.trio.server import ServerConnection

if TYPE_CHECKING:
    from websockets.trio.connection import Connection as _Base
else:
    _Base = object


class _Duplex(_Base):
    _reader: trio.lowlevel.Task | None = None

    async def recv_events(self) -> None:
        self._reader = trio.lowlevel.current_task()
        await super().recv_events()

    async def send_data(self) -> None:
        if self.send_lock.locked() and trio.lowlevel.current_task() is self._reader:
            return  # it leaves with what is being sent
        await super().send_data()
        while self.protocol.writes and not self.send_lock.locked():
            await super().send_data()

    async def aclose(
        self, code: CloseCode | int = CloseCode.NORMAL_CLOSURE, reason: str = ""
    ) -> None:
        limit = float("inf") if self.close_timeout is None else 2 * self.close_timeout
        try:
            with trio.move_on_after(limit):
                await super().aclose(code, reason)
                return
            await trio.aclose_forcefully(self.stream)
        finally:
            # The reader may wait until somebody takes what it has read; nobody will.
            if self.recv_flow_control is not None:
                self.resume_reading()


class DuplexClientConnection(_Duplex, ClientConnection):
    """A client's connection that reads while it sends."""


class DuplexServerConnection(_Duplex, ServerConnection):
    """A server's connection that reads while it sends."""
