# SPDX-License-Identifier: Apache-2.0
"""A session as its client sees it."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec

from lipsync_fast.client.events import Event, media_event
from lipsync_fast.client.running import Connection
from lipsync_fast.errors import AudioFormatError, ProtocolError, SessionError
from lipsync_fast.protocol import (
    AudioFormat,
    ClientMessage,
    ErrorMessage,
    Ping,
    SessionInterrupt,
    SessionStarted,
    SessionUpdate,
    UtteranceEnd,
    UtteranceSay,
    VideoFormat,
    decode_server,
    encode,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lipsync_fast.audio.pcm import PcmReport

    Pcm: TypeAlias = "bytes | bytearray | memoryview | NDArray[np.generic]"

PIECE = 64 << 10
"""Bytes of PCM in a message: small enough for any server's limit, large enough to cost little."""
NORMAL = 1000
M = TypeVar("M", bound=msgspec.Struct)


def checked(message: M) -> M:
    """A message whose fields are what the protocol allows.

    Raises:
        ValueError: one is not; it is named as the caller's argument.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(message), type(message))
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        what, _, path = str(error).partition(" - at `$.")
        if not path:
            raise ValueError(what) from None
        names = path.rstrip("`").split(".")
        value: object = message
        for name in names:
            value = getattr(value, name)
        allowed = what[:1].lower() + what[1:].replace("`", "")
        raise ValueError(f"{names[-1]} {repr(value)[:40]}: {allowed}") from None


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """See that an argument is one of a few words.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name} {repr(value)[:40]}: expected {' or '.join(allowed)}")


def plain(value: Any) -> Any:
    """A whole number of another kind (NumPy's) as Python's; anything else as it is."""
    return operator.index(value) if hasattr(type(value), "__index__") else value


class Session:
    """Send sound, iterate over what comes; made by ``connect``.

    One task may send while another one iterates. Nothing is buffered here beyond a few messages: a
    client that does not iterate is a slow reader to the server, and one that sends more than the
    server lets wait is held up in ``send`` until it has been spoken.
    """

    def __init__(self, connection: Connection, audio: AudioFormat, video: VideoFormat) -> None:
        self._connection, self._audio, self._video = connection, audio, video
        self._started: SessionStarted | None = None
        self._report: PcmReport | None = None

    def __repr__(self) -> str:
        started = self._started
        return f"Session({started.session!r}, avatar={started.avatar!r})" if started else "Session"

    @property
    def warnings(self) -> list[str]:
        """What was mended so far in arrays that were sent; bytes are sent as they are."""
        return [] if self._report is None else self._report.warnings()

    @property
    def started(self) -> SessionStarted:
        """What the server last said of the session: avatar, size, face rectangle, latency."""
        assert self._started is not None
        return self._started

    # ------------------------------------------------------------ what is sent
    async def send(self, pcm: Pcm) -> None:
        """Send sound, any amount; waits while the server has enough of it.

        Args:
            pcm: bytes in the format that the session was begun with; or an array, (samples,) or
                (samples, channels), int16 or float in [-1, 1], which is brought into that format.
                Samples that are not finite become silence, and ``warnings`` counts them.

        Raises:
            AudioFormatError (a ValueError): what cannot be brought into it.
            SessionError: the session has ended.
        """
        raw = isinstance(pcm, (bytes, bytearray, memoryview))
        data = memoryview(pcm if raw else self._encoded(pcm)).cast("B")  # type: ignore[arg-type]
        for start in range(0, len(data), PIECE):
            await self._send_raw(bytes(data[start : start + PIECE]))

    async def end_utterance(self) -> None:
        """What was sent is all that is to be said for now: show its last frames."""
        await self._send_message(UtteranceEnd())

    async def say(self, name: str) -> None:
        """Have a pre-rendered utterance of the avatar said, as a whole; none may be open.

        Where there is none of that name, an ErrorMessage with code ``unknown_utterance`` comes.
        """
        await self._send_message(checked(UtteranceSay(name=name)))

    async def interrupt(self) -> None:
        """Stop what is being said, at once; answered by SessionInterrupted."""
        await self._send_message(SessionInterrupt())

    async def update(
        self,
        *,
        avatar: str | None = None,
        content: Literal["frame", "mouth"] | None = None,
        quality: int | None = None,
        max_width: int | None = None,
        pictures: bool | None = None,
    ) -> None:
        """Change what is shown, between utterances; answered by SessionStarted.

        What is not given stays as it is. ``pictures`` is obeyed at once: without them, sound
        (``echo_audio``) and messages go on.

        Raises:
            ValueError: an argument cannot be; the message names it.
        """
        if content is not None:
            one_of("content", content, ("frame", "mouth"))
        changed: dict[str, Any] = {
            "content": content,
            "quality": plain(quality),
            "max_width": plain(max_width),
        }
        given = {name: value for name, value in changed.items() if value is not None}
        video = None
        if given:
            old = self._video
            kept = {"content": old.content, "quality": old.quality, "max_width": old.max_width}
            video = VideoFormat(**(kept | given))
        message = checked(SessionUpdate(avatar=avatar, video=video, pictures=pictures))
        if message.video is not None:
            self._video = message.video
        await self._send_message(message)

    async def ping(self, id: str | int | None = None) -> None:
        """Ask for a Pong; also tells the server that a silent client is still there."""
        await self._send_message(checked(Ping(id=id)))

    async def _send_message(self, message: ClientMessage) -> None:
        await self._send_raw(encode(message))

    async def _send_raw(self, data: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            raise ended(error) or SessionError("connection", "the session has ended") from None

    def _encoded(self, pcm: Any) -> bytes:
        import numpy as np

        from lipsync_fast.audio.pcm import PcmReport, cleaned, to_float

        array = np.asarray(pcm)
        if array.dtype.kind not in "iuf":
            raise AudioFormatError(
                f"pcm of type {type(pcm).__name__}: expected bytes, or an array of samples"
            )
        channels = array.shape[1] if array.ndim == 2 else 1
        if array.ndim not in (1, 2) or channels != self._audio.channels:
            raise AudioFormatError(
                f"pcm of shape {array.shape}: expected {self._audio.channels}"
                f" channel{'s' if self._audio.channels > 1 else ''}, as the session was begun with"
            )
        if self._audio.format == "s16le" and array.dtype == np.int16:
            return array.astype("<i2").tobytes()
        if self._report is None:
            self._report = PcmReport()
        samples = cleaned(to_float(array if array.ndim == 2 else array[:, None]), self._report)
        if self._audio.format == "f32le":
            return samples.astype("<f4").tobytes()
        loud = np.clip(np.rint(samples * 32768.0), -32768, 32767)
        return bytes(loud.astype("<i2").tobytes())

    # ------------------------------------------------------------ what comes
    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            StopAsyncIteration: the session has ended as was wished.
            SessionError: it has ended otherwise; ``code`` says why.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            message = await self._connection.recv()
        except ConnectionClosed as error:
            failure = ended(error)
            if failure is None:
                raise StopAsyncIteration from None
            raise failure from None
        try:
            event = decode_server(message) if isinstance(message, str) else media_event(message)
        except ProtocolError as error:
            raise SessionError(
                "connection", f"the server does not speak lipsync.v1: {error}"
            ) from (error)
        if isinstance(event, SessionStarted):
            self._started = event
        if isinstance(event, ErrorMessage) and event.fatal:
            raise SessionError(event.code, event.message)
        return event


def ended(error: Any) -> SessionError | None:
    """A closed connection as an error; None where it was closed as it should be."""
    close = error.rcvd
    if close is None:
        return SessionError("connection", "the connection was lost")
    if close.code == NORMAL:
        return None
    return SessionError("connection", close.reason or f"closed by the server ({close.code})")
