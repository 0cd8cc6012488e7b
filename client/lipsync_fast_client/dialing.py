# SPDX-License-Identifier: Apache-2.0
"""From an address to a connection, again where it was lost, and its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lipsync_fast_client.errors import SessionError
from lipsync_fast_client.hosts import is_loopback
from lipsync_fast_client.protocol import SUBPROTOCOL, SessionStop, encode
from lipsync_fast_client.running import (
    Opener,
    abandon,
    close_within,
    pause,
    running_library,
    within,
)

if TYPE_CHECKING:
    from ssl import SSLContext

CLOSE_S = 2.0
"""How long the end of a session may take."""
CODE = "X-Lipsync-Fast-Code"
"""The header in which a server says by a word why it refuses a connection."""
KEEPALIVE_S = 40.0
"""A server from which no answer has come for so long is gone."""
MOST_BYTES = 64 << 20
"""The largest picture that is taken."""
NORMAL = 1000
FOR_GOOD = frozenset({NORMAL, 1002, 1003, 1007, 1008, 1009, 1010})
"""Codes of a close after which the same would happen again: it is the client's to mend."""


class Dialer:
    """Opens connections to a server: one at a time, the one before is gone.

    Args:
        headers: of each request, besides.
        keepalive: a server from which no answer has come for so many seconds is gone.
        ssl: of TLS; the library's own where None.

    Attributes:
        left: whoever wanted them has gone.
    """

    def __init__(
        self,
        url: str,
        token: str,
        open_timeout: float,
        headers: Mapping[str, str] | None = None,
        keepalive: float = KEEPALIVE_S,
        ssl: SSLContext | None = None,
    ) -> None:
        self.url = url
        half = None if math.isinf(keepalive) else keepalive / 2
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        self._options: dict[str, Any] = {
            "subprotocols": [SUBPROTOCOL],
            "additional_headers": shown | dict(headers or {}),
            "compression": None,
            "open_timeout": None if math.isinf(open_timeout) else open_timeout,
            "ping_interval": half,
            "ping_timeout": half,
            # Who does not answer a ping is not waited for much longer to say goodbye.
            "close_timeout": min(CLOSE_S, keepalive / 2),
            "logger": _logger(),
            "max_size": MOST_BYTES,
        }
        if ssl is not None:
            self._options["ssl"] = ssl
        # Proxies of the environment (HTTP_PROXY and the like) are for what is elsewhere: none of
        # them leads to this machine itself.
        if is_loopback(urlsplit(url).hostname or ""):
            self._options["proxy"] = None
        self._connection: Any = None

    async def __aenter__(self) -> Dialer:
        self.left, self._connection = False, None
        self._library = running_library()
        self._opener = await Opener(self._library).__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Say goodbye, and close."""
        self.left = True
        try:
            if self._connection is not None:
                await close_within(self._library, self._connection, self._stop, CLOSE_S)
        finally:
            await self._opener.__aexit__()

    async def _stop(self) -> None:
        from websockets.exceptions import ConcurrencyError, ConnectionClosed

        # The server closes; its answer lies behind what was not read. Where another task still
        # reads, that one sees the end.
        with suppress(ConnectionClosed, ConcurrencyError):
            await self._connection.send(encode(SessionStop()))
            while True:
                await self._connection.recv()

    async def dial(self) -> Any:
        """A new connection; what is left of the one before is closed.

        Raises:
            SessionError: there is no server, or it refuses.
            ValueError: no connection can be opened to that ``url``.
        """
        await self.abandon()
        try:
            self._connection = await self._opener.open(self.url, **self._options)
        except Exception as error:
            raise refused(self.url, error) from error
        if self.left:  # the context was left meanwhile: nobody else would close it
            await self.abandon()
            raise SessionError("connection", "the session has ended")
        return self._connection

    async def abandon(self) -> None:
        """Close what there is, without a word."""
        if self._connection is not None:
            await abandon(self._library, self._connection)

    async def pause(self, seconds: float) -> None:
        """Do nothing for so long."""
        await pause(self._library, seconds)

    async def within(self, seconds: float, task: Callable[[], Awaitable[None]]) -> None:
        """Do something in time.

        Raises:
            TimeoutError: it took longer, and was cancelled.
        """
        await within(self._library, seconds, task)


def _logger() -> logging.Logger:
    """Whoever uses a session is told what happens to its connection; logs need not say it again."""
    logger = logging.getLogger("lipsync_fast_client.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger


def ended(error: Any) -> SessionError | None:
    """A closed connection as an error; None where it was closed as it should be."""
    close = error.rcvd
    if close is None:
        return SessionError("connection", "the connection was lost")
    if close.code == NORMAL:
        return None
    return SessionError("connection", close.reason or f"closed by the server ({close.code})")


def may_come_back(error: Any) -> bool:
    """Whether another connection may do better than the one that has ended like this."""
    return error.rcvd is None or error.rcvd.code not in FOR_GOOD


def refused(url: str, error: Exception) -> SessionError | ValueError:
    """Why a connection could not be opened, in words and with a code."""
    from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException

    if isinstance(error, InvalidStatus):
        response: Any = error.response
        words = bytes(response.body or b"").decode(errors="replace").strip()
        status = response.status_code
        message = words or f"{url}: refused with HTTP status {status}"
        word = response.headers.get(CODE, "")
        if status in (401, 403):
            return SessionError("token_expired" if word == "expired" else "unauthorized", message)
        retry = response.headers.get("Retry-After", "")
        retry_s = float(retry) if retry.isdigit() else None
        if word == "over_quota":
            return SessionError(word, message, retry_s)
        return SessionError("overloaded" if status == 503 else "connection", message, retry_s)
    if isinstance(error.__cause__, OSError):  # of TLS, under trio
        error = error.__cause__
    if isinstance(error, (InvalidURI, ValueError)) and not isinstance(error, OSError):
        return ValueError(str(error))
    if isinstance(error, (OSError, TimeoutError, WebSocketException, EOFError)):
        return SessionError("connection", f"{url}: {error}")
    raise error
