# SPDX-License-Identifier: Apache-2.0
"""A video service that stands behind the speech synthesis, before the transport's output."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import numpy as np
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from lipsync_fast_client import (
    AudioFrame,
    ConnectionLost,
    Event,
    LipsyncError,
    Reconnected,
    Session,
    SessionOverloaded,
    UtteranceEnded,
    VideoFrame,
    connect,
)
from lipsync_fast_client.keeping import keep_session
from lipsync_fast_client.spoken import Spoken

FIRST_S = 2.0
"""How long the first words wait for the server."""
PAUSE_S = 0.8
"""An agent that never says where an utterance ends begins a new one, with a face, after that."""
STUCK_S = 5.0
"""Sound that the server was given and does not say for so long goes on without a face."""


class LipsyncFastVideoService(AIService):
    """Gives an agent a face: speech in; the same speech, and pictures in step with it, out.

    Where the server cannot be reached, is lost, or has too much to do, the sound goes on without a
    face, an ErrorFrame (not fatal) says so once, and the face comes back with the next utterance
    that begins when the server is there again.

    Args:
        url: of the server's stream port, ``ws://…`` or ``wss://…``.
        avatar: its name; the server's default where empty.
        token: what the server asks for.
        max_width: of the pictures. Give the transport's ``video_out_width``: pictures of another
            size are scaled there, each by itself.
        quality: of the pictures between server and agent, 1 to 100.
        sync_with_audio: have the transport show each picture with its sound.

    Raises:
        ValueError: an argument cannot be; the message names it.
    """

    def __init__(
        self,
        *,
        url: str,
        avatar: str = "",
        token: str = "",
        max_width: int | None = None,
        quality: int | None = None,
        sync_with_audio: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(settings=ServiceSettings(model=None), **kwargs)
        self._wanted: dict[str, Any] = {
            "url": url,
            "avatar": avatar,
            "token": token,
            "max_width": max_width,
            "quality": quality,
            "echo_audio": True,
            "reconnect": math.inf,
        }
        connect(**self._wanted)  # says what cannot be, now
        self._sync = sync_with_audio
        self._rate = 0
        self._session: Session | None = None
        self._up = False
        self._tasks: list[asyncio.Task[None]] = []
        self._spoken: Spoken[Frame] = Spoken()
        self._pushing = asyncio.Lock()
        self._turn = 0  # changes with every interruption
        self._moved = self._said = 0.0  # when sound last came back, and when it last came
        self._told = False
        self._done, self._tried = asyncio.Event(), asyncio.Event()
        self._resampler = create_stream_resampler()

    def can_generate_metrics(self) -> bool:
        """The time to the first sound that has a face is measured."""
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Take the rate of the sound that goes out."""
        await super().setup(setup)
        self._rate = setup.audio_out_sample_rate

    async def stop(self, frame: EndFrame) -> None:
        """Say what is left, then end."""
        await self._end_open()
        while self._spoken:
            self._done.clear()
            await self._done.wait()
        await super().stop(frame)
        await self._leave()

    async def cancel(self, frame: CancelFrame) -> None:
        """End at once."""
        await super().cancel(frame)
        await self._leave()

    async def cleanup(self) -> None:
        """Nothing is left running."""
        await super().cleanup()
        await self._leave()

    async def _leave(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await self.cancel_task(task)
        self._session, self._up = None, False

    # ------------------------------------------------------------ what the agent says
    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Speech to the server, and what follows it behind it; all else goes on."""
        await super().process_frame(frame, direction)
        if direction != FrameDirection.DOWNSTREAM:
            await self.push_frame(frame, direction)
        elif isinstance(frame, StartFrame):
            await self.push_frame(frame, direction)
            if not self._tasks:
                self._tasks = [self.create_task(task) for task in (self._keep(), self._watch())]
        elif isinstance(frame, TTSAudioRawFrame):
            await self._say(frame)
        elif isinstance(frame, TTSStoppedFrame):
            await self._end(frame)
        elif isinstance(frame, InterruptionFrame):
            await self._interrupt()
            await self.push_frame(frame, direction)
        else:
            await self.push_frame(frame, direction)

    async def _say(self, frame: TTSAudioRawFrame) -> None:
        pcm = _mono(frame.audio, frame.num_channels)
        if frame.sample_rate != self._rate:
            pcm = await self._resampler.resample(pcm, frame.sample_rate, self._rate)
        if not pcm:
            return
        now = asyncio.get_running_loop().time()
        paused, self._said = now - self._said > PAUSE_S, now
        if not self._spoken:
            self._moved = now
        elif paused and self._spoken.open and not self._spoken.open.face:
            await self._end_open()
        if not self._tried.is_set():  # a greeting has a face, where there is a server
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._tried.wait(), FIRST_S)
        session = self._session
        utterance = self._spoken.add(pcm, face=self._up)
        if not utterance.face or session is None:
            await self._push_faceless()
            return
        if not utterance.begun and len(utterance.sound) == 1:
            await self.start_ttfb_metrics()
        try:
            await session.send(pcm)
        except LipsyncError as error:
            await self._lose(str(error))

    async def _end(self, frame: TTSStoppedFrame) -> None:
        if self._spoken.follow(frame):
            await self._end_open()
        else:
            await self.push_frame(frame)

    async def _end_open(self) -> None:
        utterance = self._spoken.open
        if utterance is not None:
            utterance.ended = True
            if utterance.face and self._session is not None:
                try:
                    await self._session.end_utterance()
                except LipsyncError as error:
                    await self._lose(str(error))
        await self._push_faceless()

    async def _interrupt(self) -> None:
        self._turn += 1
        self._spoken.clear()
        self._done.set()
        if self._session is not None:
            try:
                await self._session.interrupt()
            except LipsyncError as error:
                await self._lose(str(error))

    # ------------------------------------------------------------ what the server shows
    async def _keep(self) -> None:
        """Have a session as long as the agent lives."""
        await keep_session(
            lambda: connect(**self._wanted, sample_rate=self._rate),
            self._found,
            self._take,
            self._gone,
        )

    def _found(self, session: Session) -> None:
        self._session, self._up, self._told = session, True, False
        self._tried.set()

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
        turn = self._turn
        if isinstance(event, AudioFrame):
            if event.pcm:
                self._moved = asyncio.get_running_loop().time()
            self._spoken.heard(len(event.pcm))
            await self.stop_ttfb_metrics()
            await self._push_sound(event.pcm, turn)
        elif isinstance(event, VideoFrame):
            await self._push_picture(event, turn)
        elif isinstance(event, UtteranceEnded):
            async with self._pushing:
                if turn == self._turn:
                    self._told = False
                    for behind in self._spoken.shown():
                        await self.push_frame(behind)
            self._moved = asyncio.get_running_loop().time()
            await self._push_faceless()
        elif isinstance(event, SessionOverloaded):
            self._spoken.lose_newest()
            await self._tell("the server has too much to do: this is said without a face")
            if self._session is not None:
                await self._session.end_utterance()  # the next one is tried again
            await self._push_faceless()
        elif isinstance(event, ConnectionLost):
            self._up = False
            await self._lose(event.reason)
        elif isinstance(event, Reconnected):
            self._up, self._told = True, False

    async def _lose(self, reason: str) -> None:
        """What was given to the server is said without a face, and no more by the server."""
        self._spoken.lose_all()
        if self._session is not None:
            with contextlib.suppress(LipsyncError):
                await self._session.interrupt()
        await self._tell(f"no face: {reason}")
        await self._push_faceless()

    async def _tell(self, words: str) -> None:
        if not self._told:
            self._told = True
            await self.push_error(words)

    # ------------------------------------------------------------ what goes on
    async def _push_sound(self, pcm: bytes, turn: int) -> None:
        async with self._pushing:
            if turn == self._turn:
                await self.push_frame(
                    TTSAudioRawFrame(audio=pcm, sample_rate=self._rate, num_channels=1)
                )

    async def _push_faceless(self) -> None:
        async with self._pushing:
            for item in self._spoken.faceless():
                if isinstance(item, bytes):
                    await self.push_frame(
                        TTSAudioRawFrame(audio=item, sample_rate=self._rate, num_channels=1)
                    )
                else:
                    for behind in item:
                        await self.push_frame(behind)
        if not self._spoken:
            self._done.set()

    async def _push_picture(self, picture: VideoFrame, turn: int) -> None:
        try:
            data, size = await asyncio.to_thread(_decoded, picture)
        except LipsyncError as error:
            await self._tell(str(error))
            return
        if turn != self._turn and picture.utterance:
            return
        shown = OutputImageRawFrame(image=data, size=size, format="RGB")
        shown.sync_with_audio = self._sync
        await self.push_frame(shown)


def _mono(pcm: bytes, channels: int) -> bytes:
    if channels == 1:
        return pcm
    samples = np.frombuffer(pcm, "<i2").reshape(-1, channels)
    return samples.mean(axis=1).astype("<i2").tobytes()


def _decoded(picture: VideoFrame) -> tuple[bytes, tuple[int, int]]:
    image = picture.image
    return image.tobytes(), image.size
