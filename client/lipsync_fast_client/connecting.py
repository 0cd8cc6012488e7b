# SPDX-License-Identifier: Apache-2.0
"""From an address to a session that has been started, and its end."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from lipsync_fast_client.arguments import (
    SHOWN,
    check_address,
    check_headers,
    checked,
    is_seconds,
    one_of,
    plain,
)
from lipsync_fast_client.dialing import KEEPALIVE_S, Dialer
from lipsync_fast_client.outage import patience
from lipsync_fast_client.protocol import AudioFormat, SessionStart, VideoFormat
from lipsync_fast_client.session import Session

if TYPE_CHECKING:
    from ssl import SSLContext


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
    codec: Literal["jpeg", "h264"] = "jpeg",
    bitrate: int | None = None,
    pace: Literal["live", "burst"] = "live",
    idle: bool = True,
    echo_audio: bool = False,
    pictures: bool = True,
    token: str = "",
    open_timeout: float = 10.0,
    reconnect: bool | float = False,
    headers: Mapping[str, str] | None = None,
    keepalive: float = KEEPALIVE_S,
    ssl: SSLContext | None = None,
) -> Connecting:
    """Begin a session with a server, under trio or asyncio.

    >>> async with connect("ws://127.0.0.1:8084") as session:  # doctest: +SKIP
    ...     async for event in session:
    ...         ...

    Args:
        url: of a stream port, or of /ws of the HTTP port: ``ws://…`` or ``wss://…``.
        avatar: its name; the server's default where empty.
        sample_rate, format, channels: of the sound that is sent; 8,000 to 192,000 Hz, one or two
            interleaved channels.
        content, quality, max_width, codec, bitrate: of the pictures, see ``protocol.VideoFormat``.
            With codec "h264" a ``VideoFrame`` is one access unit of a stream.
        pace: "live" for frames in real time, "burst" for each as soon as it is made.
        idle: show the avatar between utterances too (live).
        echo_audio: have the sound come back on the pictures' clock.
        pictures: have pictures sent; ``Session.update`` changes that.
        token: what the server asks for.
        open_timeout: seconds that connecting may take.
        reconnect: have a new session with the same settings where the connection is lost, for as
            many seconds as are given, or 300; told as ``ConnectionLost`` and ``Reconnected``.
        headers: of the request, besides: what a proxy before the server asks for.
        keepalive: where no answer has come from the server for so many seconds, the connection is
            lost: it is asked twice as often. Less for agents that are to notice soon that a machine
            has vanished, and that always iterate; infinite: it is never asked.
        ssl: for ``wss://…``: which authorities are believed, the system's where None
            (``ssl.create_default_context(cafile=…)`` for one of your own), and the certificate that
            the server may ask for (the context's ``load_cert_chain``).

    Raises:
        ValueError: an argument cannot be; the message names it.

    Raises when entered:
        SessionError: the server cannot be reached, or refuses; its ``code`` says why, and
            ``retry_after_s`` when to try again where the server said so.
        ValueError: no connection can be opened to that ``url``.
    """
    check_address(url, token, open_timeout, ssl)
    if not is_seconds(keepalive):
        raise ValueError(f"keepalive {repr(keepalive)[:SHOWN]}: expected seconds, more than 0")
    seconds = patience(reconnect)
    one_of("format", format, ("s16le", "f32le"))
    one_of("content", content, ("frame", "mouth"))
    one_of("codec", codec, ("jpeg", "h264"))
    one_of("pace", pace, ("live", "burst"))
    start = SessionStart(
        avatar=avatar,
        audio=AudioFormat(sample_rate=plain(sample_rate), format=format, channels=plain(channels)),
        video=VideoFormat(
            content=content,
            codec=codec,
            quality=plain(quality),
            max_width=plain(max_width),
            bitrate=plain(bitrate),
        ),
        pace=pace,
        idle=idle,
        echo_audio=echo_audio,
        pictures=pictures,
    )
    dialer = Dialer(url, token, open_timeout, check_headers(headers), keepalive, ssl)
    return Connecting(dialer, checked(start), seconds)


class Connecting:
    """An asynchronous context manager that gives a ``Session``; leaving it ends the session.

    It says session.stop and closes, within ``dialing.CLOSE_S``. Cancelled under trio, the
    connection is closed without a word, which ends the session as well.
    """

    def __init__(self, dialer: Dialer, start: SessionStart, patience: float | None) -> None:
        self._dialer, self._start, self._patience = dialer, start, patience

    def __repr__(self) -> str:
        return f"Connecting({self._dialer.url!r})"

    async def __aenter__(self) -> Session:
        session = Session(self._dialer, self._start, self._patience)
        await self._dialer.__aenter__()
        try:
            await session._begin()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._dialer.__aexit__()
