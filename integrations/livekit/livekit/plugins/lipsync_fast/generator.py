# SPDX-License-Identifier: Apache-2.0
"""Sound of an agent in; the same sound, and pictures in step with it, out."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, VideoGenerator

from lipsync_fast_client import (
    AudioFrame,
    Connecting,
    ConnectionLost,
    Event,
    LipsyncError,
    Reconnected,
    Session,
    SessionOverloaded,
    UtteranceEnded,
    UtteranceStarted,
    VideoFrame,
    connect,
)
from lipsync_fast_client.keeping import keep_session
from lipsync_fast_client.spoken import Spoken

FPS = 25
USUAL_SIZE = 1280, 720
"""What is announced where there is no server yet; pictures have the size that they have."""
Item: TypeAlias = "rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd"
FIRST_S = 2.0
"""How long the first words wait for the server."""
STUCK_S = 5.0
"""Sound that the server was given and does not say for so long goes on without a face."""
CALM_S = 0.1
"""How long an interruption waits for the piece of sound that is just being taken."""
MOST_PICTURES = 5
"""Pictures that wait to be taken; older ones are left out."""


class LipsyncFastGenerator(VideoGenerator):
    """What LiveKit's ``AvatarRunner`` asks for pictures.

    Where the server cannot be reached, is lost, or has too much to do, the sound goes on without a
    face; it comes back with the next segment that begins when the server is there again.

    Args:
        url: of the server's stream port, ``ws://…`` or ``wss://…``.
        avatar: its name; the server's default where empty.
        token: what the server asks for.
        sample_rate: of the sound that comes out.
        max_width, quality: of the pictures.
        on_face: called with None when there is a face, and with the reason when there is none.
        dial: makes a connection to the server, from what ``connect`` takes.

    Raises:
        ValueError: an argument cannot be; the message names it.
    """

    def __init__(
        self,
        url: str,
        *,
        avatar: str = "",
        token: str = "",
        sample_rate: int = 24_000,
        max_width: int | None = None,
        quality: int | None = None,
        on_face: Callable[[str | None], None] = lambda reason: None,
        dial: Callable[..., Connecting] = connect,
    ) -> None:
        self.sample_rate = sample_rate
        self._wanted: dict[str, Any] = {
            "url": url,
            "avatar": avatar,
            "token": token,
            "sample_rate": sample_rate,
            "max_width": max_width,
            "quality": quality,
            "echo_audio": True,
            "reconnect": math.inf,
        }
        self._dial = dial
        dial(**self._wanted)  # says what cannot be, now
        self._on_face = on_face
        self._lost: str | None = None
        self._session: Session | None = None
        self._up = False
        self._tried = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._spoken: Spoken[AudioSegmentEnd] = Spoken()
        self._turn = 0  # changes with every interruption
        self._moved = 0.0  # when sound last came back
        self._out: deque[Item] = deque()
        self._more, self._calm = asyncio.Event(), asyncio.Event()
        self._calm.set()
        self._resamplers: dict[int, rtc.AudioResampler] = {}

    async def start(self) -> tuple[int, int] | None:
        """Have a session as long as this lives; waits a moment for the first one.

        Returns:
            Width and height of its pictures; None where there is no server yet.
        """
        self._tasks = [asyncio.create_task(task) for task in (self._keep(), self._watch())]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), FIRST_S)
        if self._session is None:
            return None
        return self._session.started.width, self._session.started.height

    async def aclose(self) -> None:
        """End the session."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._session, self._up = None, False

    # ------------------------------------------------------------ what the agent says
    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Sound, or the end of a segment of it."""
        if isinstance(frame, AudioSegmentEnd):
            await self._end(frame)
            return
        for pcm in self._in_form(frame):
            if not self._spoken:
                self._moved = asyncio.get_running_loop().time()
            utterance = self._spoken.add(pcm, face=self._up)
            if not utterance.face or self._session is None:
                self._give_faceless()
                continue
            try:
                await self._session.send(pcm)
            except LipsyncError as error:
                await self._lose(str(error))

    def _in_form(self, frame: rtc.AudioFrame) -> list[bytes]:
        samples = np.frombuffer(frame.data, np.int16)
        if frame.num_channels > 1:
            samples = samples.reshape(-1, frame.num_channels).mean(axis=1).astype(np.int16)
        if frame.sample_rate == self.sample_rate:
            return [samples.tobytes()] if len(samples) else []
        resampler = self._resamplers.get(frame.sample_rate)
        if resampler is None:
            resampler = rtc.AudioResampler(frame.sample_rate, self.sample_rate)
            self._resamplers[frame.sample_rate] = resampler
        mono = rtc.AudioFrame(samples.tobytes(), frame.sample_rate, 1, len(samples))
        return [bytes(piece.data) for piece in resampler.push(mono)]

    async def _end(self, end: AudioSegmentEnd) -> None:
        utterance = self._spoken.open
        if not self._spoken.follow(end):
            self._give(end)
            return
        if utterance is not None:
            utterance.ended = True
            if utterance.face and self._session is not None:
                try:
                    await self._session.end_utterance()
                except LipsyncError as error:
                    await self._lose(str(error))
        self._give_faceless()

    async def clear_buffer(self) -> None:
        """All that was said is void, at once; what the client drops need not be waited for."""
        self._turn += 1
        self._spoken.clear()
        self._out = deque(item for item in self._out if isinstance(item, rtc.VideoFrame))
        if self._session is not None:
            with contextlib.suppress(LipsyncError):
                await self._session.interrupt()
        # The piece that is being taken now is heard, and counted by whoever takes it.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._calm.wait(), CALM_S)

    # ------------------------------------------------------------ what the server shows
    async def _keep(self) -> None:
        await keep_session(lambda: self._dial(**self._wanted), self._begun, self._take, self._gone)

    def _begun(self, session: Session) -> None:
        self._session = session
        self._found()

    async def _gone(self, reason: str) -> None:
        self._session, self._up = None, False
        self._tried.set()
        await self._lose(reason)

    async def _watch(self) -> None:
        """A server that was given sound and gives none back is not waited for."""
        while True:
            await asyncio.sleep(STUCK_S / 5)
            idle = asyncio.get_running_loop().time() - self._moved
            if self._spoken.owed and idle >= STUCK_S:
                await self._lose("the server does not go on")

    async def _take(self, event: Event) -> None:
        now, turn = asyncio.get_running_loop().time(), self._turn
        if isinstance(event, AudioFrame):
            if event.pcm:
                self._moved = now
            self._spoken.heard(len(event.pcm))
            self._give_sound(event.pcm)
        elif isinstance(event, VideoFrame):
            with contextlib.suppress(LipsyncError):
                picture = await asyncio.to_thread(_decoded, event)
                if turn == self._turn or not event.utterance:
                    self._give(picture)
        elif isinstance(event, UtteranceEnded):
            self._moved = now
            for end in self._spoken.shown():
                self._give(end)
            self._give_faceless()
        elif isinstance(event, SessionOverloaded):
            self._spoken.lose_newest()
            self._tell("the server has too much to do")
            if self._session is not None:
                await self._session.end_utterance()  # the next one is tried again
            self._give_faceless()
        elif isinstance(event, UtteranceStarted):
            self._tell(None)
        elif isinstance(event, ConnectionLost):
            self._up = False
            await self._lose(event.reason)
        elif isinstance(event, Reconnected):
            self._found()

    def _found(self) -> None:
        self._up = True
        self._tried.set()
        self._tell(None)

    async def _lose(self, reason: str) -> None:
        self._spoken.lose_all()
        if self._session is not None:
            with contextlib.suppress(LipsyncError):
                await self._session.interrupt()
        self._tell(reason)
        self._give_faceless()

    def _tell(self, reason: str | None) -> None:
        if reason != self._lost:
            self._lost = reason
            self._on_face(reason)

    # ------------------------------------------------------------ what goes on
    def _give(self, item: Item) -> None:
        if isinstance(item, rtc.VideoFrame):
            waiting = [k for k, other in enumerate(self._out) if isinstance(other, rtc.VideoFrame)]
            if len(waiting) >= MOST_PICTURES:
                del self._out[waiting[0]]
        self._out.append(item)
        self._more.set()

    def _give_sound(self, pcm: bytes) -> None:
        if pcm:
            self._give(rtc.AudioFrame(pcm, self.sample_rate, 1, len(pcm) // 2))

    def _give_faceless(self) -> None:
        for item in self._spoken.faceless():
            if isinstance(item, bytes):
                self._give_sound(item)
            else:
                for end in item:
                    self._give(end)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self._items()

    async def _items(self) -> AsyncIterator[Item]:
        while True:
            while not self._out:
                self._more.clear()
                await self._more.wait()
            item = self._out.popleft()
            if isinstance(item, rtc.AudioFrame):
                self._calm.clear()
            yield item
            self._calm.set()


def _decoded(picture: VideoFrame) -> rtc.VideoFrame:
    image = picture.image
    return rtc.VideoFrame(image.width, image.height, rtc.VideoBufferType.RGB24, image.tobytes())
