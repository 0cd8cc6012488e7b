# SPDX-License-Identifier: Apache-2.0
"""One connection's share of a process with one thread: others have their turn in between.

What has been received of a WebSocket is parsed in one go, and 64 KiB are 10,900 empty frames: a
tenth of a second and more, again and again from a peer that sends nothing else. So received bytes
are handed on in slices, others run whenever many frames have come, and a peer has an allowance of
frames that say nothing: pings, pongs, and messages or pieces of messages without a byte. Nobody who
means well comes near it.
"""

from __future__ import annotations

from typing import Protocol

import trio

SLICE = 4096
"""Bytes that are handed on at a time: at most 682 frames."""
FRAMES = 64
"""After so many of a connection's frames others have their turn."""
EMPTY_A_SECOND, EMPTY_AT_ONCE = 250, 1000
"""Frames that say nothing, as many as a peer may send for ever, and in advance."""
CHATTER = 1008
"""The code with which a connection is closed whose peer sends more of them."""
WHY = f"more than {EMPTY_A_SECOND} pings, pongs or empty frames a second"


class Turn:
    """What has come on one connection: since others had their turn, and that said nothing."""

    def __init__(self) -> None:
        self._frames = 0
        self._empty, self._since = 0.0, trio.current_time()

    def count(self, empty: bool) -> bool:
        """A frame has come.

        Args:
            empty: it says nothing.

        Returns:
            Whether it is one too many.
        """
        self._frames += 1
        if not empty:
            return False
        now = trio.current_time()
        left = self._empty - (now - self._since) * EMPTY_A_SECOND
        self._empty, self._since = max(left, 0.0) + 1, now
        return self._empty > EMPTY_AT_ONCE

    async def give_way(self) -> None:
        """Let others run, if many frames have come since they could."""
        if self._frames >= FRAMES:
            await trio.lowlevel.checkpoint()
            self._frames = 0


class SocketLike(Protocol):
    """A socket's stream, or what is spoken over one."""

    socket: trio.socket.SocketType

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """The next bytes."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        ...

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there may be room."""
        ...

    async def send_eof(self) -> None:
        """Say that nothing more is sent."""
        ...

    async def aclose(self) -> None:
        """Close."""
        ...


class Encrypting(SocketLike, Protocol):
    """One whose bytes are others than those that go out."""

    @property
    def is_free(self) -> bool:
        """Nobody sends, and nothing is left to be sent."""
        ...

    @property
    def unsent(self) -> bool:
        """Something is left of what ``send_now`` has begun: ``send_all`` sends it first."""
        ...

    def send_now(self, data: bytes) -> None:
        """Send as far as the kernel takes it now; where it is free."""
        ...


class InTurns(trio.abc.HalfCloseableStream):
    """A connection's stream whose received bytes come in slices, others running in between.

    Args:
        turn: counts the frames that are in them.
    """

    def __init__(self, stream: SocketLike, turn: Turn) -> None:
        self._stream, self._turn = stream, turn
        self.socket = stream.socket
        self._data: bytes | bytearray = b""
        self._given = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """The next bytes; a slice at most."""
        await self._turn.give_way()
        if self._given == len(self._data):
            self._data, self._given = await self._stream.receive_some(max_bytes), 0
        start = self._given
        self._given = min(start + SLICE, len(self._data))
        return self._data[start : self._given]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there may be room."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that nothing more is sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close; what was received and not handed on is forgotten."""
        self._data, self._given = b"", 0
        await self._stream.aclose()
