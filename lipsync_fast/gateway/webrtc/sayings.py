# SPDX-License-Identifier: Apache-2.0
"""What a peer has the avatar say: its microphone, recordings and texts, one of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from lipsync_fast.errors import PeerError
from lipsync_fast.gateway.webrtc.hearing import RATE, Pcm, Resampled, Voice
from lipsync_fast.logs import get_logger
from lipsync_fast_client.protocol import MOST_TEXT
from lipsync_fast_client.session import Session

log = get_logger("lipsync.gateway")
MOST_WAITING = 4
"""Recordings and texts of one peer that wait to be said."""


class Sayings:
    """Gives them to the session, in the order in which they come; a microphone gives way.

    Args:
        session: the peer's.
        run: has something done for as long as the peer lives.
        address: of the peer, for the log.
    """

    def __init__(
        self, session: Session, run: Callable[[Coroutine[Any, Any, None]], None], address: str
    ) -> None:
        self._session, self._run, self._address = session, run, address
        self._talk = asyncio.Lock()
        self._text_over = asyncio.Event()
        """What is said of a text has been said, or will not be."""
        self._waiting = self._cut = 0

    @property
    def waiting(self) -> bool:
        """Something is being said that was sent whole, or waits to be."""
        return self._waiting > 0

    def recording(self, pieces: Iterator[Pcm]) -> None:
        """Have a recording said, behind what waits.

        Raises:
            PeerError: too much waits.
        """
        self._queue(self._say(pieces, self._cut))

    def text(self, text: str, voice: str = "") -> None:
        """Have the server's speech synthesis speak a text, behind what waits.

        Raises:
            PeerError: there is none, the text is empty or too long, or too much waits.
        """
        if self._session.started.text is not True:
            raise PeerError("no text-to-speech is set up here (speech.engine): send sound", 501)
        if not 0 < len(text) <= MOST_TEXT:
            raise PeerError(f"text: expected 1 to {MOST_TEXT} characters")
        self._queue(self._say_text(text, voice[:200], self._cut))

    def drop(self) -> None:
        """What is being said, and what waits, is void."""
        self._cut += 1

    def ended(self) -> None:
        """An utterance has ended, or will not be."""
        self._text_over.set()

    async def listen(self, track: MediaStreamTrack) -> None:
        """Say what comes from a microphone, until it ends."""
        voice, resampled, said = Voice(), Resampled(), False
        try:
            while True:
                frame: Any = await track.recv()
                for piece in voice.hear(resampled.push(frame)):
                    if not said and self._talk.locked():
                        continue  # a recording is being said
                    if not said:
                        said = await self._talk.acquire()
                    await self._session.send(piece.tobytes())
                if said and not voice.open:
                    said = False
                    self._talk.release()
                    await self._session.end_utterance()
        except MediaStreamError:
            pass
        finally:
            if said:
                self._talk.release()

    def _queue(self, saying: Coroutine[Any, Any, None]) -> None:
        if self._waiting >= MOST_WAITING:
            saying.close()
            raise PeerError(f"{MOST_WAITING} recordings and texts wait to be said already", 429)
        self._waiting += 1
        self._run(saying)

    async def _say_text(self, text: str, voice: str, cut: int) -> None:
        try:
            async with self._talk:
                if cut == self._cut:
                    self._text_over.clear()
                    await self._session.say_text(text, voice)
                    await self._text_over.wait()
        finally:
            self._waiting -= 1

    async def _say(self, pieces: Iterator[Pcm], cut: int) -> None:
        try:
            async with self._talk:
                while cut == self._cut:
                    piece = await asyncio.to_thread(_second, pieces)
                    if piece is None or cut != self._cut:
                        break
                    await self._session.send(piece)
                if cut == self._cut:
                    await self._session.end_utterance()
        except PeerError as error:  # its end cannot be read
            log.info("a recording ends early", peer=self._address, why=str(error))
            await self._session.end_utterance()
        finally:
            self._waiting -= 1


def _second(recording: Iterator[Pcm]) -> bytes | None:
    """About a second of a recording; None at its end."""
    found, count = [], 0
    for piece in recording:
        found.append(piece.tobytes())
        count += len(piece)
        if count >= RATE:
            break
    return b"".join(found) or None
