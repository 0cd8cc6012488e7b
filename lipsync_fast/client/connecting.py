# SPDX-License-Identifier: Apache-2.0
"""From an address to a session that has been started, and its end."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

from lipsync_fast.client.running import close_within, opened, running_library
from lipsync_fast.client.session import Session, checked, one_of, plain
from lipsync_fast.errors import SessionError
from lipsync_fast.protocol import (
    SUBPROTOCOL,
    AudioFormat,
    ErrorMessage,
    SessionStart,
    SessionStarted,
    SessionStop,
    VideoFormat,
    encode,
)

CLOSE_S = 2.0
"""How long the end of a session may take."""
MOST_BYTES = 64 << 20
"""The largest picture that is taken."""


def connect(
    url: str,
    *,
    avatar: str = "",
    sample_rate: int = 16_000,
    format: Literal["s16le", "f32le"] = "s16le",
    channels: int = 1,
    content: Literal["frame", "mouth"] = "frame",
    quality: int | None = None,
    max_width: int | None = None,
    pace: Literal["live", "burst"] = "live",
    idle: bool = True,
    echo_audio: bool = False,
    pictures: bool = True,
    token: str = "",
    open_timeout: float = 10.0,
) -> Connecting:
    """Begin a session with a server, under trio or asyncio.

    >>> async with lipsync_fast.connect("ws://127.0.0.1:8084") as session:  # doctest: +SKIP
    ...     async for event in session:
    ...         ...

    Args:
        url: of a stream port, or of /ws of the HTTP port: ``ws://…`` or ``wss://…``.
        avatar: its name; the server's default where empty.
        sample_rate, format, channels: of the sound that is sent; 8,000 to 192,000 Hz, one or two
            interleaved channels.
        content, quality, max_width: of the pictures, see ``protocol.VideoFormat``.
        pace: "live" for frames in real time, "burst" for each as soon as it is made.
        idle: show the avatar between utterances too (live).
        echo_audio: have the sound come back on the pictures' clock.
        pictures: have pictures sent; ``Session.update`` changes that.
        token: what the server asks for.
        open_timeout: seconds that connecting may take.

    Raises:
        ValueError: an argument cannot be; the message names it.

    Raises when entered:
        SessionError: the server cannot be reached, or refuses; its ``code`` says why, and
            ``retry_after_s`` when to try again where the server said so.
        ValueError: no connection can be opened to that ``url``.
    """
    _check_address(url, token, open_timeout)
    one_of("format", format, ("s16le", "f32le"))
    one_of("content", content, ("frame", "mouth"))
    one_of("pace", pace, ("live", "burst"))
    start = SessionStart(
        avatar=avatar,
        audio=AudioFormat(sample_rate=plain(sample_rate), format=format, channels=plain(channels)),
        video=VideoFormat(content=content, quality=plain(quality), max_width=plain(max_width)),
        pace=pace,
        idle=idle,
        echo_audio=echo_audio,
        pictures=pictures,
    )
    return Connecting(url, checked(start), token, open_timeout)


def _check_address(url: object, token: object, open_timeout: object) -> None:
    if not isinstance(url, str) or not url.startswith(("ws://", "wss://")):
        raise ValueError(
            f"url {url!r}: expected ws://HOST:PORT or wss://…, such as a server prints"
        )
    if not isinstance(token, str) or not token.isprintable():
        raise ValueError("token: expected a string without line breaks")
    seconds = isinstance(open_timeout, (int, float)) and not isinstance(open_timeout, bool)
    if not seconds or not open_timeout > 0:  # type: ignore[operator]
        raise ValueError(f"open_timeout {open_timeout!r}: expected seconds, more than 0")


class Connecting:
    """An asynchronous context manager that gives a ``Session``; leaving it ends the session.

    It says session.stop and closes, within ``CLOSE_S``. Cancelled under trio, the connection is
    closed without a word, which ends the session as well.
    """

    def __init__(self, url: str, start: SessionStart, token: str, open_timeout: float) -> None:
        self._url, self._start, self._token = url, start, token
        self._open_timeout = open_timeout

    async def __aenter__(self) -> Session:
        self._library = running_library()
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._manager = opened(
            self._library,
            self._url,
            subprotocols=[SUBPROTOCOL],
            additional_headers=headers,
            compression=None,
            open_timeout=self._open_timeout,
            close_timeout=CLOSE_S,
            max_size=MOST_BYTES,
        )
        try:
            self._connection = await self._manager.__aenter__()
        except Exception as error:
            raise _refused(self._url, error) from error
        try:
            return await self._begun()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _begun(self) -> Session:
        session = Session(self._connection, self._start.audio, self._start.video)
        await session._send_raw(encode(self._start))
        async for event in session:
            if isinstance(event, SessionStarted):
                return session
            if isinstance(event, ErrorMessage):
                raise SessionError(event.code, event.message)
        raise SessionError("connection", "the server has ended the session before it began")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from websockets.exceptions import ConcurrencyError, ConnectionClosed

        async def stop() -> None:
            # The server closes; its answer lies behind what was not read. Where another task still
            # reads, that one sees the end.
            with suppress(ConnectionClosed, ConcurrencyError):
                await self._connection.send(encode(SessionStop()))
                while True:
                    await self._connection.recv()

        await close_within(self._library, self._connection, stop, CLOSE_S)
        # What was raised inside is the caller's, and no business of websockets' task group.
        await self._manager.__aexit__(None, None, None)


def _refused(url: str, error: Exception) -> SessionError | ValueError:
    """Why a connection could not be opened, in words and with a code."""
    from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException

    if isinstance(error, InvalidStatus):
        response: Any = error.response
        words = bytes(response.body or b"").decode(errors="replace").strip()
        status = response.status_code
        message = words or f"{url}: refused with HTTP status {status}"
        if status in (401, 403):
            return SessionError("unauthorized", message)
        retry = response.headers.get("Retry-After", "")
        retry_s = float(retry) if retry.isdigit() else None
        return SessionError("overloaded" if status == 503 else "connection", message, retry_s)
    if isinstance(error, (InvalidURI, ValueError)):
        return ValueError(str(error))
    if isinstance(error, (OSError, TimeoutError, WebSocketException, EOFError)):
        return SessionError("connection", f"{url}: {error}")
    raise error
