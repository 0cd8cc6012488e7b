# SPDX-License-Identifier: Apache-2.0
"""As many frames as a server makes: sessions that always have sound waiting.

Each session has two utterances under way, so that the server never waits for a client. Every frame
is checked to be the next one; a sample is kept to be compared with the offline pipeline.
"""

from __future__ import annotations

import itertools
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import trio
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.audio.windows import frame_count
from lipsync_fast.benchmark.load import Sample
from lipsync_fast.client import ErrorMessage, Session, SessionOverloaded, UtteranceEnded, VideoFrame

UNDER_WAY = 2
"""Utterances of a session that are sent and not ended."""
FIRST_S = 60.0
"""How long sessions' first frames are waited for: a machine may be busy with something else."""


@dataclass(frozen=True)
class Look:
    """What is asked of the pictures; see ``protocol.VideoFormat``."""

    content: Literal["frame", "mouth"] = "frame"
    quality: int | None = None
    max_width: int | None = None


@dataclass
class Burst:
    """One session that wants frames as fast as they come.

    Attributes:
        begun_ns: when ``once`` began to speak, CLOCK_MONOTONIC, ns; arrivals: when each frame came.
        wrong: frames that were not the next one, and what the server complained of, in words.
        keep_every: keep one frame in so many to be compared, the first session's first among them.
        samples: frames to be compared, of the sound and the avatar's own order.
        seen: set once a frame has come.
    """

    number: int
    avatar: str
    look: Look
    pcm: NDArray[np.int16]
    keep_every: int
    begun_ns: int = 0
    arrivals: list[int] = field(default_factory=list)
    bytes: int = 0
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seen: trio.Event = field(default_factory=trio.Event)

    def _connect(self, url: str) -> AbstractAsyncContextManager[Session]:
        look = self.look
        return lipsync_fast.connect(
            url,
            avatar=self.avatar,
            pace="burst",
            content=look.content,
            quality=look.quality,
            max_width=look.max_width,
        )

    async def once(self, url: str) -> None:
        """Speak one utterance, and see its last frame."""
        ended = trio.Semaphore(0)
        async with self._connect(url) as session, trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, session, ended)
            self.begun_ns = time.monotonic_ns()
            await session.send(self.pcm)
            await session.end_utterance()
            await ended.acquire()
            nursery.cancel_scope.cancel()

    async def run(self, url: str, over: trio.Event) -> None:
        """Speak from now on, until it is over."""
        room = trio.Semaphore(UNDER_WAY)
        async with self._connect(url) as session, trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, session, room)
            nursery.start_soon(self._speak, session, room)
            await over.wait()
            nursery.cancel_scope.cancel()

    async def _speak(self, session: Session, room: trio.Semaphore) -> None:
        while True:
            await room.acquire()
            await session.send(self.pcm)
            await session.end_utterance()

    async def _listen(self, session: Session, room: trio.Semaphore) -> None:
        frames, came, sequence = frame_count(len(self.pcm)), 0, -1
        async for event in session:
            if isinstance(event, VideoFrame):
                self.arrivals.append(time.monotonic_ns())
                self.seen.set()
                self.bytes += len(event.jpeg)
                if event.sequence != sequence + 1 or event.repeated:
                    self._note(f"frame {event.sequence} behind {sequence}")
                sequence = event.sequence
                place = len(self.arrivals) - 1
                if self.keep_every and place % self.keep_every == self.number % self.keep_every:
                    self.samples.append(
                        Sample(event.utterance, came, event.avatar_frame, event.jpeg)
                    )
                came += 1
            elif isinstance(event, UtteranceEnded):
                if came != frames or event.frames != frames or event.dropped:
                    self._note(f"{came} frames came, {event} ended, not {frames}")
                came = 0
                room.release()
            elif isinstance(event, ErrorMessage | SessionOverloaded):
                self._note(repr(event))

    def _note(self, words: str) -> None:
        if len(self.wrong) < 20:
            self.wrong.append(f"session {self.number}: {words}")


async def bursts(
    url: str,
    pcm: NDArray[np.int16],
    seconds: float,
    *,
    avatars: list[str],
    sessions: int,
    look: Look,
    keep_every: int,
) -> tuple[list[Burst], int, int]:
    """Sessions that speak, the avatars in turn: for so long once each of them has had a frame.

    Returns:
        The sessions, and from when to when frames count: from the moment at which each session had
        one (or ``FIRST_S`` have passed), to the end.
    """
    all_of = [Burst(k, avatars[k % len(avatars)], look, pcm, keep_every) for k in range(sessions)]
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        for each in all_of:
            nursery.start_soon(each.run, url, over)
        with trio.move_on_after(FIRST_S):
            for each in all_of:
                await each.seen.wait()
        first = time.monotonic_ns()
        await trio.sleep(seconds)
        until = time.monotonic_ns()
        over.set()
    return all_of, first, until


async def in_turn(
    url: str,
    pcm: NDArray[np.int16],
    seconds: float,
    *,
    avatars: list[str],
    sessions: int,
    keep_every: int,
) -> tuple[list[Burst], int, int]:
    """Clients that come, say one thing to the next avatar, and go; ``sessions`` at a time.

    Each avatar gets at least one, however long that takes.

    Returns:
        The sessions, and from when to when they went on.
    """
    done: list[Burst] = []
    begun = time.monotonic_ns()
    until = begun + int(seconds * 1e9)
    turn = enumerate(itertools.cycle(avatars))

    async def one_after_the_other() -> None:
        while time.monotonic_ns() < until or len(done) < len(avatars):
            number, avatar = next(turn)
            burst = Burst(number, avatar, Look(), pcm, keep_every)
            done.append(burst)
            await burst.once(url)

    async with trio.open_nursery() as nursery:
        for _ in range(sessions):
            nursery.start_soon(one_after_the_other)
    if sum(b.begun_ns < until for b in done) < len(avatars):
        until = max((b.arrivals[-1] for b in done if b.arrivals), default=until)
    return done, begun, until
