# SPDX-License-Identifier: Apache-2.0
"""A session as its client sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from msgspec.structs import replace

from lipsync_fast_client.arguments import checked, one_of, plain
from lipsync_fast_client.dialing import Dialer, ended, may_come_back
from lipsync_fast_client.errors import AudioFormatError, ProtocolError, SessionError
from lipsync_fast_client.events import ConnectionLost, Event, Reconnected, media_event
from lipsync_fast_client.outage import Outage
from lipsync_fast_client.pending import Pending
from lipsync_fast_client.protocol import (
    ClientMessage,
    ErrorMessage,
    Ping,
    ServerMessage,
    SessionInterrupt,
    SessionStart,
    SessionStarted,
    SessionUpdate,
    UtteranceEnd,
    UtteranceSay,
    VideoFormat,
    VideoKeyframe,
    decode_server,
    encode,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lipsync_fast_client.events import AudioFrame, VideoFrame
    from lipsync_fast_client.samples import PcmReport

    Pcm: TypeAlias = "bytes | bytearray | memoryview | NDArray[np.generic]"

PIECE = 64 << 10
"""Bytes of PCM in a message: small enough for any server's limit, large enough to cost little."""
PASSING = frozenset({"connection", "overloaded", "over_quota", "internal", "engine_lost"})
"""Codes of what may be over when it is tried again."""
SHORTEST_S = 1.0
"""What an attempt to come back may take at the least."""


class Session:
    """Send sound, iterate over what comes; made by ``connect``.

    One task may send while another one iterates. Nothing is buffered here beyond a few messages: a
    client that does not iterate is a slow reader to the server, and one that sends more than the
    server lets wait is held up in ``send`` until it has been spoken.

    A method for each of the protocol's messages, and what they have in common.

    What an interruption has made void does not come: neither pictures nor sound nor messages of
    utterances that were begun before ``interrupt``.
    """

    def __init__(self, dialer: Dialer, start: SessionStart, patience: float | None = None) -> None:
        self._dialer, self._start, self._patience = dialer, start, patience
        self._connection: Any = None
        self._started: SessionStarted | None = None
        self._asked: deque[str | None] = deque()  # avatars, of updates that were not answered yet
        self._report: PcmReport | None = None
        self._pending = Pending()
        self._outage: Outage | None = None

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

        Where the session is interrupted meanwhile, by another task, the rest is not sent.

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
        cut = self._pending.cut
        for start in range(0, len(data), PIECE):
            if self._pending.cut != cut or not self._pending.sound():
                return
            await self._send_raw(bytes(data[start : start + PIECE]))

    async def end_utterance(self) -> None:
        """What was sent is all that is to be said for now: show its last frames."""
        if self._pending.ended():
            await self._send_message(UtteranceEnd())

    async def say(self, name: str) -> None:
        """Have a pre-rendered utterance of the avatar said, as a whole; none may be open.

        Where there is none of that name, an ErrorMessage with code ``unknown_utterance`` comes.
        """
        message = checked(UtteranceSay(name=name))
        if self._pending.said():
            await self._send_message(message)

    async def say_text(self, text: str, voice: str = "") -> None:
        """Have the server's speech synthesis speak a text, as an utterance behind those that wait.

        What cannot be spoken, or where the server has no speech synthesis (``started.text`` is not
        true), an ErrorMessage with code ``speech_failed`` comes.

        Raises:
            ValueError: the text is empty, or has more than 4,000 characters.
        """
        message = checked(UtteranceSay(text=text, voice=voice))
        if self._pending.said():
            await self._send_message(message)

    async def interrupt(self) -> None:
        """Stop what is being said, at once; answered by SessionInterrupted.

        From this call on nothing comes of what was said before.
        """
        if not self._pending.interrupted():
            return
        try:
            await self._send_message(SessionInterrupt())
        except BaseException:
            self._pending.not_interrupted()
            raise

    async def update(
        self,
        *,
        avatar: str | None = None,
        content: Literal["frame", "mouth"] | None = None,
        quality: int | None = None,
        max_width: int | None = None,
        codec: Literal["jpeg", "h264"] | None = None,
        bitrate: int | None = None,
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
        if codec is not None:
            one_of("codec", codec, ("jpeg", "h264"))
        changed: dict[str, Any] = {
            "content": content,
            "quality": plain(quality),
            "max_width": plain(max_width),
            "codec": codec,
            "bitrate": plain(bitrate),
        }
        given = {name: value for name, value in changed.items() if value is not None}
        if codec == "jpeg":
            given["bitrate"] = None
        video: VideoFormat | None = replace(self._start.video, **given) if given else None
        message = checked(SessionUpdate(avatar=avatar, video=video, pictures=pictures))
        known = {"video": message.video, "pictures": message.pictures}
        self._start = replace(self._start, **{k: v for k, v in known.items() if v is not None})
        self._asked.append(message.avatar)
        if self._outage is None:
            await self._send_message(message)

    async def key_frame(self) -> None:
        """Ask for a key frame of H.264, for a decoder that begins anew; without effect on JPEGs."""
        if self._outage is None:
            await self._send_message(VideoKeyframe())

    async def ping(self, id: str | int | None = None) -> None:
        """Ask for a Pong; also tells the server that a silent client is still there."""
        message = checked(Ping(id=id))
        if self._outage is None:
            await self._send_message(message)

    async def _send_message(self, message: ClientMessage) -> None:
        await self._send_raw(encode(message))

    async def _send_raw(self, data: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            if self._patience is not None and may_come_back(error):
                return  # whoever iterates is told
            raise ended(error) or SessionError("connection", "the session has ended") from None

    def _encoded(self, pcm: Any) -> bytes:
        try:
            from lipsync_fast_client.samples import PcmReport, encoded
        except ImportError:  # without NumPy there are no arrays
            raise AudioFormatError(f"pcm of type {type(pcm).__name__}: expected bytes") from None
        if self._report is None:
            self._report = PcmReport()
        return encoded(pcm, self._start.audio, self._report)

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

        if self._outage is not None:
            return await self._again(self._outage)
        while True:
            try:
                message = await self._connection.recv()
            except ConnectionClosed as error:
                failure = ended(error)
                if failure is None:
                    raise StopAsyncIteration from None
                return self._lost(failure, may_come_back(error))
            event = self._event(message)
            if isinstance(event, ErrorMessage) and event.fatal:
                failure = SessionError(event.code, event.message)
                return self._lost(failure, event.code in PASSING)
            self._answered(event)
            if self._pending.sees(event):
                return event

    def _event(self, message: str | bytes) -> ServerMessage | VideoFrame | AudioFrame:
        try:
            event = decode_server(message) if isinstance(message, str) else media_event(message)
        except ProtocolError as error:
            raise SessionError(
                "connection", f"the server does not speak lipsync.v1: {error}"
            ) from error
        if isinstance(event, SessionStarted):
            self._started = event
        return event

    def _answered(self, event: Event) -> None:
        """Note what became of an update: a new session begins with what was agreed to."""
        if isinstance(event, SessionStarted) and self._asked:
            self._agree(self._asked.popleft())
        elif isinstance(event, ErrorMessage) and event.code == "unknown_avatar" and self._asked:
            self._asked.popleft()

    def _agree(self, avatar: str | None) -> None:
        if avatar is not None:
            self._start = replace(self._start, avatar=avatar)

    # ------------------------------------------------------------ beginning, and beginning again
    async def _begin(self) -> None:
        """Have a connection, and a session on it.

        Raises:
            SessionError: there is no server, or it refuses.
            ValueError: no connection can be opened to that address.
        """
        from websockets.exceptions import ConnectionClosed

        while self._asked:
            self._agree(self._asked.popleft())
        wanted = self._start
        self._connection = await self._dialer.dial()
        try:
            await self._connection.send(encode(wanted))
            while True:
                event = self._event(await self._connection.recv())
                if isinstance(event, SessionStarted):
                    break
                if isinstance(event, ErrorMessage):
                    raise SessionError(event.code, event.message)
        except ConnectionClosed as error:
            words = "the server has ended the session before it began"
            raise ended(error) or SessionError("connection", words) from None
        changes = list(self._asked)  # what was changed meanwhile
        if changes:
            avatar = next((name for name in reversed(changes) if name is not None), None)
            self._asked = deque([avatar])
            video, pictures = self._start.video, self._start.pictures
            await self._send_message(SessionUpdate(avatar=avatar, video=video, pictures=pictures))

    def _lost(self, failure: SessionError, passing: bool) -> ConnectionLost:
        """The session is over.

        Raises:
            SessionError: for good.
        """
        if self._patience is None or not passing:
            raise failure from None
        self._outage = Outage(self._patience)
        return ConnectionLost(reason=str(failure), unfinished=self._pending.lost())

    async def _again(self, outage: Outage) -> Reconnected:
        """A new session; it is tried again and again.

        Raises:
            SessionError: the server is not back in time, or does not want this client.
        """
        while True:
            await self._dialer.pause(outage.wait_s())
            if self._dialer.left:
                raise StopAsyncIteration
            outage.attempt()
            try:
                await self._dialer.within(max(outage.left_s, SHORTEST_S), self._begin)
                break
            except TimeoutError:
                failure = SessionError("connection", f"{self._dialer.url}: no answer in time")
            except SessionError as error:
                failure, outage.retry_after_s = error, error.retry_after_s
            if failure.code not in PASSING or not outage.left_s:
                self._outage = self._patience = None
                self._pending = Pending()
                await self._dialer.abandon()
                raise SessionError(
                    failure.code, f"gone for {outage.seconds:.0f} s, and not back: {failure}"
                ) from failure
        self._outage = None
        return Reconnected(
            attempts=outage.attempts, seconds=outage.seconds, missed=self._pending.back()
        )
