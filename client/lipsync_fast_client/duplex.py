# SPDX-License-Identifier: Apache-2.0
"""websockets' trio connections that read on while a message waits to be sent.

As they come, what has been received is followed by sending what it calls for (pongs, the answer to
a close), behind a message that is being sent. So an end that is held up in ``send`` stops reading;
where both ends are held up, neither ever goes on. Here the reader leaves what is to be sent to
whoever is sending.

A message can be sent without waiting, too (``send_now``): as far as the kernel takes it at once.

To a peer that takes nothing, nothing is sent for long: a server's connection ends then. The
library's pings cannot tell, since they wait behind what is being sent.

And closing is bounded as a whole: as it comes, it waits without end for room to send its farewell
to a peer that reads nothing, and for a reader that waits for somebody to take what it has read.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, cast

import trio
from websockets.frames import CloseCode
from websockets.protocol import State
from websockets.trio.client import ClientConnection

if TYPE_CHECKING:
    from websockets.trio.connection import Connection as _Base
else:
    _Base = object


PIECE = 1 << 20
"""Bytes that are sent before the time that a peer has for them begins anew."""


class Duplex(_Base):
    """What both ends do otherwise than the library."""

    _reader: trio.lowlevel.Task | None = None
    _rest = b""
    unread_s = math.inf
    """A peer that does not take a piece within this is given up."""

    async def recv_events(self) -> None:
        self._reader = trio.lowlevel.current_task()
        await super().recv_events()

    async def send_data(self) -> None:
        busy = self.send_lock.locked() or self.unsent
        if busy and trio.lowlevel.current_task() is self._reader:
            return  # it leaves with what is being sent
        if self._rest:
            self.protocol.writes.insert(0, self._rest)
            self._rest = b""
        await self._send_writes()
        while self.protocol.writes and not self.send_lock.locked():
            await self._send_writes()

    async def _send_writes(self) -> None:
        """What the library's ``send_data`` does, but within bounds.

        Raises:
            trio.BrokenResourceError: the peer takes nothing; the library ends the connection then.
        """
        async with self.send_lock:
            await self._send_rest()
            for data in _joined(self.protocol.data_to_send()):
                for start in range(0, len(data), PIECE):
                    await self._send_piece(data[start : start + PIECE])
                if not data and isinstance(self.stream, trio.abc.HalfCloseableStream):
                    with contextlib.suppress(Exception):
                        await self.stream.send_eof()
                elif not data:  # TLS of trio's
                    await self.stream.aclose()

    async def _send_rest(self) -> None:
        """Send what a stream has kept of what it was given by ``_write_now``."""

    async def _send_piece(self, piece: bytes) -> None:
        with trio.move_on_after(self.unread_s):
            await self.stream.send_all(piece)
            return
        raise trio.BrokenResourceError(f"the peer has taken nothing for {self.unread_s:g} s")

    def send_now(self, data: str | bytes) -> bool:
        """Send a message as far as the kernel takes it now.

        Returns:
            Whether it was begun. ``unsent`` says whether some of it is left; that leaves before
            anything else, with ``flush``. False: another message is on its way, or the connection
            is not open; nothing was done.
        """
        protocol = self.protocol
        if (
            protocol.state is not State.OPEN
            or self.send_lock.locked()
            or self.unsent
            or protocol.writes
            or not self._is_direct
        ):
            return False
        if isinstance(data, str):
            protocol.send_text(data.encode())
        else:
            protocol.send_binary(data)
        self._rest = self._write_now(b"".join(protocol.data_to_send()))
        return True

    @property
    def _is_direct(self) -> bool:
        """Whether the stream can send something now, without waiting."""
        return isinstance(self.stream, trio.SocketStream)

    def _write_now(self, message: bytes) -> bytes:
        """Have the kernel take as much as it will; gives the rest."""
        try:
            sent = os.write(cast(trio.SocketStream, self.stream).socket.fileno(), message)
        except OSError:  # there is no room, or nobody: whoever flushes will be told
            sent = 0
        return message[sent:]

    @property
    def unsent(self) -> bool:
        """The kernel did not take all of what ``send_now`` has begun."""
        return bool(self._rest)

    async def flush(self) -> None:
        """Send what is left of it.

        Raises:
            ConnectionClosed: the peer has gone.
        """
        async with self.send_context():
            pass

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
            self._let_reader_end()

    async def abandon(self) -> None:
        """Close without a word."""
        try:
            await trio.aclose_forcefully(self.stream)
        finally:
            self._let_reader_end()

    def _let_reader_end(self) -> None:
        """It may wait until somebody takes what it has read; nobody will."""
        if self.recv_flow_control is not None:
            self.resume_reading()


def _joined(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Frames that follow each other as one piece; the sign of the end, which is empty, alone.

    What calls for thousands of pongs is answered with a few pieces.
    """
    for has_bytes, following in groupby(frames, bool):
        if has_bytes:
            yield b"".join(following)
        else:
            yield from following


class DuplexClientConnection(Duplex, ClientConnection):
    """A client's connection that reads while it sends."""
