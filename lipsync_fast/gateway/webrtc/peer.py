# SPDX-License-Identifier: Apache-2.0
"""A browser that watches, and speaks: its connection, and its session of lipsync.v1.

One task owns both, from the offer to the end of either. What ends it is one sentence: the peer
(closed, vanished, never came), the session (lost, ended by the server), or somebody who asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import IO, Any

from aiortc import MediaStreamTrack, RTCPeerConnection

from lipsync_fast.errors import FrontError, LipsyncError, PeerError, SessionError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.fronts import Client, Fronts
from lipsync_fast.gateway.webrtc import offers
from lipsync_fast.gateway.webrtc.hearing import RATE
from lipsync_fast.gateway.webrtc.ice import Places
from lipsync_fast.gateway.webrtc.recorder import Recorder, another
from lipsync_fast.gateway.webrtc.sayings import Sayings
from lipsync_fast.gateway.webrtc.timeline import Timeline
from lipsync_fast.gateway.webrtc.tracks import PictureTrack, SoundTrack, on_picture_loss, watch
from lipsync_fast.logs import get_logger
from lipsync_fast_client.events import AudioFrame, ConnectionLost, Event, Reconnected, VideoFrame
from lipsync_fast_client.protocol import (
    AudioFormat,
    ErrorMessage,
    SessionInterrupted,
    SessionOverloaded,
    SessionStart,
    UtteranceEnded,
    UtteranceStarted,
    VideoFormat,
)
from lipsync_fast_client.session import Session

log = get_logger("lipsync.gateway")
CONNECT_S = 30.0
"""From an answer to the first packets."""
SILENT_S = 8.0
"""A peer from which nothing comes for so long has vanished; a browser reports each second."""
LOOK_S = 0.5
KEY_EVERY_S = 0.25
AWAY_S = 30.0
"""How long a front that has died is waited for."""
CLOSED, ASKED = "the client has closed the connection", "the client has ended it"
WELL = frozenset({CLOSED, ASKED})
"""Ends that nobody is told of."""


class Peer:
    """One peer. All methods are for the loop that it was begun in.

    Args:
        client: for whom the session is.
        avatar: its name; the server's default where empty.
        bitrate: of pictures; what they need where 0.
        account: whose it is, as far as tokens name somebody.

    Attributes:
        speaking: something is being said, or waits to be.
        connected: packets have come from it.
        end: why it has ended; nothing while it lives.
        sayings: what it has the avatar say; there once its offer has been answered.
    """

    def __init__(
        self,
        id: str,
        client: Client,
        fronts: Fronts,
        places: Places,
        counts: Counts,
        avatar: str = "",
        bitrate: int = 0,
        account: str = "",
    ) -> None:
        self.id, self.client, self.account = id, client, account
        self._fronts, self._places, self._counts = fronts, places, counts
        self._start = SessionStart(
            avatar=avatar,
            audio=AudioFormat(sample_rate=RATE),
            video=VideoFormat(codec="h264", bitrate=bitrate or None),
            echo_audio=True,
            pictures=False,  # until there is somebody to see them
        )
        self.end = ""
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._timeline = Timeline()
        self._picture = PictureTrack(self._timeline, self._need_key)
        self._sound = SoundTrack(self._timeline)
        self._pc: RTCPeerConnection
        self._session: Session
        self.sayings: Sayings
        self._offer: offers.Offer
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard_at = 0.0
        self._said_by_server = False
        self._asking = self._wants_key = False
        self._recorder: Recorder | None = None
        self._recorded: IO[bytes] | None = None

    @property
    def connected(self) -> bool:
        """It can be sent to."""
        return self._picture.begun.is_set()

    @property
    def coming(self) -> bool:
        """It has not come yet."""
        return not self.connected and not self.end

    @property
    def speaking(self) -> bool:
        """Something is being said, or waits to be."""
        return self._said_by_server or self.sayings.waiting

    # ------------------------------------------------------------ life
    async def live(self, offer: offers.Offer, answered: asyncio.Future[str]) -> None:
        """All of it; the answer is given as soon as there is one.

        What is wrong before that is in ``answered``: nothing is raised here.
        """
        try:
            async with self._fronts.session(self.client, self._start, AWAY_S) as session:
                self._session, self._offer = session, offer
                self.sayings = Sayings(session, self._run, self.client.address)
                self._pc = RTCPeerConnection(self._places.configuration())
                try:
                    await self._meet(offer, answered)
                    self.end = await self._over
                finally:
                    await self._leave()
        except (LipsyncError, ValueError) as error:
            if not answered.done():
                answered.set_exception(error)
            self.end = self.end or str(error)
        finally:
            if not answered.done():
                answered.cancel()
            self.end = self.end or "the server is going away"
        if self.end not in WELL:
            log.info("a client's WebRTC has ended", peer=self.client.address, why=self.end)

    def close(self, why: str) -> None:
        """End it, for this reason."""
        if not self._over.done():
            self._over.set_result(why)

    async def _meet(self, offer: offers.Offer, answered: asyncio.Future[str]) -> None:
        pc = self._pc
        pc.on("connectionstatechange", self._state_changed)
        pc.on("track", self._track_came)
        made = await offers.answer(pc, offer, self._places, self._picture, self._sound, self._came)
        for sender in pc.getSenders():
            track = self._picture if sender.kind == "video" else self._sound
            watch(sender, track, self._came)
            if sender.kind == "video":
                on_picture_loss(sender, self._need_key)
        self._run(self._pump())
        self._run(self._watch())
        if not answered.done():
            answered.set_result(made)

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        with suppress(Exception):  # of a connection that is in any state
            async with asyncio.timeout(2.0):
                await self._pc.close()
        self._picture.stop()
        self._sound.stop()
        self._forget_recordings()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done for as long as the peer lives; what goes wrong there ends it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, (SessionError, FrontError)):
            self.close(str(error))
        elif error is not None:
            log.error("a client's WebRTC has failed", exc_info=error)
            self.close("internal error")

    async def _watch(self) -> None:
        """End a peer that never came, or that has vanished."""
        began = time.monotonic()
        while not self.connected:
            if time.monotonic() - began > CONNECT_S:
                self.close(f"no connection came about within {CONNECT_S:g} s")
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._picture.begun.wait()
        await self._session.update(pictures=True)
        self._need_key()
        self._heard_at = time.monotonic()
        while time.monotonic() - self._heard_at < SILENT_S:
            await asyncio.sleep(LOOK_S)
        self.close(f"the client has vanished: nothing came from it for {SILENT_S:g} s")

    def _came(self) -> None:
        self._heard_at = time.monotonic()

    def _state_changed(self) -> None:
        state = self._pc.connectionState
        if state == "closed":
            self.close(CLOSED)
        elif state == "failed":
            self.close("the connection has failed")

    # ------------------------------------------------------------ what is shown
    async def _pump(self) -> None:
        """Hand on what the session gives."""
        async for event in self._session:
            self._take(event)
        self.close("the server has ended the session")

    def _take(self, event: Event) -> None:
        if isinstance(event, VideoFrame):
            media = self._timeline.see(event.pts_us)
            if self._recorder is not None:
                self._recorder.picture(event.h264, media, event.key)
            if self._picture.put(event.h264, media, event.key):
                self._counts.picture(len(event.h264))
        elif isinstance(event, AudioFrame):
            media = self._timeline.see(event.pts_us)
            if self._recorder is not None:
                self._recorder.sound(event.pcm, media)
            self._sound.put(event.pcm, media)
        elif isinstance(event, UtteranceStarted):
            self._said_by_server = True
        elif isinstance(event, (UtteranceEnded, SessionInterrupted, SessionOverloaded)):
            self._said_by_server = False
            self.sayings.ended()
            self._sound.end()
            if isinstance(event, SessionOverloaded):
                self._counts.refused()
                log.info("speech is refused", peer=self.client.address, why=event.message)
        elif isinstance(event, ConnectionLost):
            self._said_by_server = False
            self.sayings.ended()
            self._sound.end()
            self._picture.begin_again()
        elif isinstance(event, Reconnected):
            self._timeline.begin_again()
        elif isinstance(event, ErrorMessage):
            self.sayings.ended()
            log.info("a client is told", peer=self.client.address, why=event.message)

    def _need_key(self) -> None:
        """Have a key frame come; a peer that asks without end is heard now and then."""
        self._wants_key = True
        if not self._asking and not self._over.done():
            self._asking = True
            self._run(self._ask_for_key())

    async def _ask_for_key(self) -> None:
        try:
            while self._wants_key:
                self._wants_key = False
                with suppress(SessionError):  # who iterates is told
                    await self._session.key_frame()
                await asyncio.sleep(KEY_EVERY_S)
        finally:
            self._asking = False

    # ------------------------------------------------------------ what is kept of it
    def record(self) -> None:
        """Keep what is shown and heard from now on; what was kept before is forgotten.

        Raises:
            PeerError: that is being done already, or cannot be.
        """
        if self._recorder is not None:
            raise PeerError("it is being recorded already")
        self._forget_recordings()
        started = self._session.started
        self._recorder = Recorder((started.width, started.height))
        self._need_key()

    def end_recording(self) -> None:
        """Keep no more.

        Raises:
            PeerError: nothing was kept.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            raise PeerError("nothing is being recorded")
        self._recorded = recorder.end()

    def recorded(self) -> IO[bytes]:
        """What was kept, an MP4, from its beginning; who asked closes it.

        Raises:
            PeerError: nothing was, or its end has not been asked for.
        """
        if self._recorded is None:
            raise PeerError("nothing was recorded", 404)
        return another(self._recorded)

    def _forget_recordings(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
        if self._recorded is not None:
            self._recorded.close()
        self._recorder = self._recorded = None

    # ------------------------------------------------------------ what is said
    def _track_came(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._run(self.sayings.listen(track))

    async def interrupt(self) -> None:
        """Stop what is being said, and what waits to be.

        Raises:
            SessionError: the session has ended.
        """
        self.sayings.drop()
        self._sound.clear()
        await self._session.interrupt()

    # ------------------------------------------------------------ where it is
    async def trickle(self, fragment: str) -> None:
        """Take candidates that the peer has found since.

        Raises:
            PeerError: it is no fragment of SDP, or of another offer.
        """
        found = offers.candidates(fragment, self._offer)
        if not self._places.helped:
            return
        for candidate in found:
            with suppress(Exception):  # one that is of no use
                await self._pc.addIceCandidate(candidate)
