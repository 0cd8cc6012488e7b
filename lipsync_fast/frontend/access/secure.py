# SPDX-License-Identifier: Apache-2.0
"""TLS over clients' connections: each is a stream of what is said inside.

    socket ⇄ SecureStream ⇄ whoever serves the connection, as it serves a socket

The first who receives shakes hands, so the time that a client has for its request is the time that
it has for both. Who fails is told why, by TLS's own alert, or in plain HTTP where that is what it
speaks; it is counted, and logged once a minute.

This stands on ``ssl.SSLObject`` and not on ``trio.SSLStream``, which sends no alerts and cannot say
that it sends no more. Renegotiation is off (``lipsync_fast.tls``), so writing never waits for
reading.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Callable

import trio

from lipsync_fast.certificates import Certificate
from lipsync_fast.frontend.access.door import LINGER_S
from lipsync_fast.logs import get_logger
from lipsync_fast.tls import server_context

log = get_logger("lipsync.front")
RECEIVED = 64 << 10
"""Bytes that are taken from the kernel at a time."""
LOG_S = 60.0
_SAID = "this port speaks TLS: ask https:// or wss://\n"
PLAIN_HTTP = (
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    f"Content-Length: {len(_SAID)}\r\nConnection: close\r\n\r\n{_SAID}"
).encode()
"""What those are told who speak HTTP without TLS."""


class Security:
    """What connections of a front are greeted with: TLS, or nothing. One thread.

    Args:
        certificate: of the server; None for none.
        on_refused: called for each client with which no handshake can be done.
    """

    def __init__(self, certificate: Certificate | None, on_refused: Callable[[], None]) -> None:
        self._context = None if certificate is None else server_context(certificate)
        self._on_refused, self._warned, self._failed = on_refused, -LOG_S, 0

    @property
    def is_on(self) -> bool:
        """Whether it is TLS."""
        return self._context is not None

    def renew(self, certificate: Certificate) -> None:
        """Greet those that come from now on with another certificate."""
        self._context = server_context(certificate)

    def over(self, stream: trio.SocketStream) -> trio.SocketStream | SecureStream:
        """What is spoken on a connection that has just come."""
        if self._context is None:
            return stream
        return SecureStream(stream, self._context, self._refused)

    def _refused(self, peer: str, reason: str) -> None:
        self._on_refused()
        self._failed += 1
        now = time.monotonic()
        if now - self._warned >= LOG_S:
            log.warning(
                "no TLS with a client", peer=peer, reason=reason, since_last_said=self._failed
            )
            self._warned, self._failed = now, 0


class SecureStream(trio.abc.HalfCloseableStream):
    """The server's end of TLS on a connection. One task receives, one sends.

    Args:
        on_failure: called with the peer's address and the reason where it cannot be.

    Attributes:
        socket: below it.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        context: ssl.SSLContext,
        on_failure: Callable[[str, str], None],
    ) -> None:
        self._stream, self._on_failure = stream, on_failure
        self.socket = stream.socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._sending = trio.Lock()
        self._has_greeted = self._has_said_goodbye = False
        self._is_whole = True  # nothing was sent by half
        self._rest = b""  # of what ``send_now`` has encrypted

    # ------------------------------------------------------------ the beginning
    async def _greet(self) -> bool:
        """Shake hands; False where the client has gone meanwhile.

        Raises:
            trio.BrokenResourceError: it cannot be done.
        """
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._send_encrypted()
            except ssl.SSLError as error:
                if _has_gone(error):
                    return False
                await self._refuse(error)
                raise trio.BrokenResourceError(f"no handshake: {_reason(error)}") from error
            await self._receive_encrypted()
        await self._send_encrypted()
        self._has_greeted = True
        return True

    async def _refuse(self, error: ssl.SSLError) -> None:
        """Say why, and read what still comes for a moment, so that it is heard (as ``Door``)."""
        peer = ""
        with contextlib.suppress(OSError):
            peer = str(self.socket.getpeername()[0])
        self._on_failure(peer, _reason(error))
        with trio.move_on_after(LINGER_S), contextlib.suppress(trio.BrokenResourceError):
            if error.reason == "HTTP_REQUEST":
                await self._stream.send_all(PLAIN_HTTP)
            else:
                await self._send_encrypted()  # the alert
            await self._stream.send_eof()
            while await self._stream.receive_some(RECEIVED):
                pass

    # ------------------------------------------------------------ receiving
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes; none where the client sends no more.

        Raises:
            trio.BrokenResourceError: what comes is not what was agreed on, or the client has gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._has_said_goodbye:
            return await self._pass_over()
        if not self._has_greeted and not await self._greet():
            return b""
        has_waited = False
        while True:
            try:
                data = self._tls.read(max_bytes or RECEIVED)
                break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                if not _has_gone(error):
                    raise trio.BrokenResourceError(_reason(error)) from error
                data = b""  # most leave without a farewell
                break
            if self._outgoing.pending:  # a new key of the client's asks for one of ours
                await self._send_encrypted()
            await self._receive_encrypted()
            has_waited = True
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def _receive_encrypted(self) -> None:
        data = await self._stream.receive_some(RECEIVED)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _pass_over(self) -> bytes:
        """Wait for the end; what comes before it is of no use any more."""
        while await self._stream.receive_some(RECEIVED):
            pass
        return b""

    # ------------------------------------------------------------ sending
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; returns when the kernel has taken it.

        Raises:
            trio.BrokenResourceError: the client has gone, or nothing was agreed on yet.
        """
        if not self._has_greeted or not self._is_whole:
            raise trio.BrokenResourceError("nothing can be said before the handshake")
        async with self._sending:
            try:
                if data:
                    self._tls.write(data)
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(_reason(error)) from error
            await self._flush()

    @property
    def is_free(self) -> bool:
        """Something can be sent without waiting."""
        greeted = self._has_greeted and self._is_whole and not self._has_said_goodbye
        return greeted and not (self._rest or self._sending.locked())

    @property
    def unsent(self) -> bool:
        """Something is left of what ``send_now`` has begun."""
        return bool(self._rest)

    def send_now(self, data: bytes) -> None:
        """Send as far as the kernel takes it now; the rest goes first with what follows."""
        self._tls.write(data)
        self._rest = self._outgoing.read()
        with contextlib.suppress(OSError):  # no room, or nobody: who sends next will be told
            self._rest = self._rest[os.write(self.socket.fileno(), self._rest) :]

    async def _send_encrypted(self) -> None:
        async with self._sending:
            await self._flush()

    async def _flush(self) -> None:
        while data := self._rest or self._outgoing.read():
            self._rest = b""
            self._is_whole = False
            await self._stream.send_all(data)
            self._is_whole = True

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there may be room."""
        await self._stream.wait_send_all_might_not_block()

    # ------------------------------------------------------------ the end
    def _say_goodbye(self) -> None:
        """Put close_notify behind what is to be sent."""
        if self._has_greeted and not self._has_said_goodbye:
            with contextlib.suppress(ssl.SSLError):  # that the client has not said it as well
                self._tls.unwrap()
        self._has_said_goodbye = True

    async def send_eof(self) -> None:
        """Say that nothing more is sent; what the client sends from now on is passed over."""
        async with self._sending:
            self._say_goodbye()
            await self._flush()
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close; the farewell goes out if there is room for it at once."""
        if self._is_whole and not (self._rest or self._has_said_goodbye):
            self._say_goodbye()
            with contextlib.suppress(OSError):  # of a socket that is closed, too
                os.write(self.socket.fileno(), self._outgoing.read())
        await self._stream.aclose()


def _has_gone(error: ssl.SSLError) -> bool:
    """Whether the client has closed its connection."""
    return isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) or (
        error.reason == "UNEXPECTED_EOF_WHILE_READING"
    )


def _reason(error: ssl.SSLError) -> str:
    reason = (error.reason or "what came is no TLS").lower().replace("_", " ")
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{reason}: {error.verify_message}"
    return reason
