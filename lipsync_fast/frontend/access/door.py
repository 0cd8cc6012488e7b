# SPDX-License-Identifier: Apache-2.0
"""Where connections come in: as many as there are descriptors for, and the others are told so.

A process may have so many files open and no more (``ulimit -n``). Where it has, nothing works: no
connection can be taken, no ring of a new engine, no file. So the last ones are not given to
clients. What the kernel hands out is always the lowest number that is free, so a new connection's
number says how many are in use.
"""

from __future__ import annotations

import errno
import resource
import time
from collections.abc import Callable
from contextlib import suppress

import trio

from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.refusals import RETRY_S, retry_after

log = get_logger("lipsync.front")
KEPT = 64
"""Descriptors that are not for clients: rings of new engines, files, who is being turned away."""
KEPT_FOR_HTTP = 32
"""And so many that are not for streams: for the page, /health and /metrics."""
WARN_S = 60.0
PAUSE_S = 0.1
"""Before the next try, where no connection could be taken at all."""
MANY = 1 << 30
LINGER_S, LINGER = 1.0, 8
"""How long, and for how many at once, what a client still sends is read: else the kernel would tell
it that the connection is broken, before it has read why."""
ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""Of TLS: internal_error, fatal."""
_NO_ROOM = errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM
_FULL = "as many are connected as this server may have files open"
_SHARE = "as many are connected from this address as may"


def room_for_clients(kept: int = KEPT) -> int:
    """Descriptors below which a client's may be, by the limit of this process.

    Args:
        kept: for others; of a small limit an eighth or so.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - min(kept, kept * soft // (8 * KEPT)) if soft != resource.RLIM_INFINITY else MANY


class Door(trio.abc.Listener[trio.SocketStream]):
    """A listener that never fails for want of descriptors.

    Args:
        listener: whose connections these are.
        on_refused: called for each client that is turned away.
        kept: descriptors that are not for these clients.
        admits: whether a connection may stay; it may end others for it.
        secure: clients speak TLS: who is turned away is told in an alert of it, since saying more
            would take a handshake.
    """

    def __init__(
        self,
        listener: trio.SocketListener,
        on_refused: Callable[[], None],
        kept: int = KEPT,
        admits: Callable[[trio.SocketStream], bool] = lambda stream: True,
        secure: bool = False,
    ) -> None:
        self._listener, self._on_refused, self._kept = listener, on_refused, kept
        self.socket = listener.socket
        self._admits, self._secure, self._lingering = admits, secure, 0
        self._warned = -WARN_S

    async def accept(self) -> trio.SocketStream:
        """The next connection for which there is room."""
        while True:
            try:
                stream = await self._listener.accept()
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._warn()
                await trio.sleep(PAUSE_S)
                continue
            has_room = stream.socket.fileno() < room_for_clients(self._kept)
            if has_room and self._admits(stream):
                return stream
            if not has_room:
                self._warn()
            self._on_refused()
            await self._turn_away(stream, _SHARE if has_room else _FULL)

    async def aclose(self) -> None:
        """Stop listening."""
        await self._listener.aclose()

    async def _turn_away(self, stream: trio.SocketStream, why: str) -> None:
        """Say why, and read what comes for a moment."""
        with trio.move_on_after(LINGER_S), suppress(trio.BrokenResourceError):
            await stream.send_all(ALERT if self._secure else _answer(why))
            await stream.send_eof()
        if self._lingering < LINGER:
            self._lingering += 1
            trio.lowlevel.spawn_system_task(self._linger, stream)
        else:
            await trio.aclose_forcefully(stream)

    async def _linger(self, stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(LINGER_S), suppress(Exception):
                while await stream.receive_some(4096):
                    pass
        finally:
            self._lingering -= 1
            stream.socket.close()

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned >= WARN_S:
            self._warned = now
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.warning(
                "clients are turned away",
                reason=f"this process may have {soft} files open (ulimit -n), and nearly has",
            )


def _answer(why: str) -> bytes:
    """A refusal in HTTP, which is what all who come here begin with."""
    body = f"{why}\n".encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {retry_after(RETRY_S)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
