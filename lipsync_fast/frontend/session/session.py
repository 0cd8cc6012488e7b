# SPDX-License-Identifier: Apache-2.0
"""lipsync.v1 on one connection: a session from its start to its end.

    receive ─► control ─────────────┐
            └► PCM ─► 16 kHz ─► pace (live or burst) ─► jobs ─► pool
    send ◄─ outbox ◄─ clock ◄───────┘ ◄─ answers ◄──────────────┘

The clock is the front's (``clock.py``): it, and answers that are waited for, call ``_tick``, which
sends a picture without a change of tasks where the socket takes it. The session's own tasks
receive, send what has to wait, tell how it goes, and end it: when the client goes, stops, or is
silent for too long. All that is its own ends with it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import numpy as np
import trio

from lipsync_fast.arrays import F32
from lipsync_fast.errors import (
    LipsyncError,
    ProtocolError,
    SocketClosedError,
    UnknownUtteranceError,
)
from lipsync_fast.frontend.access.admission import RETRY_S
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.avatars.leases import AvatarLease
from lipsync_fast.frontend.engines.latency_estimate import urgent_before
from lipsync_fast.frontend.engines.pool import Pending
from lipsync_fast.frontend.engines.trace import SessionTrace
from lipsync_fast.frontend.playout.burst import BurstPlayout
from lipsync_fast.frontend.playout.live import LivePlayout
from lipsync_fast.frontend.playout.plan import GRACE_NS, LiveSettings
from lipsync_fast.frontend.playout.playout import (
    Appearance,
    Ended,
    Event,
    Flag,
    Picture,
    Playout,
    Started,
)
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.client_audio import ClientAudio
from lipsync_fast.frontend.session.handshake import (
    GOING_AWAY,
    MOST_ERRORS,
    NORMAL,
    POLICY,
    EndError,
    begin,
    code_of,
    silent,
)
from lipsync_fast.frontend.session.outbox import Item, Outbox
from lipsync_fast.geometry import EMPTY, Rect
from lipsync_fast.ipc.messages import Answer, Content, Job, Look, scaled_size
from lipsync_fast.protocol import (
    ClientMessage,
    ErrorMessage,
    MediaHeader,
    MediaType,
    Ping,
    Pong,
    ServerMessage,
    SessionInterrupt,
    SessionInterrupted,
    SessionOverloaded,
    SessionStart,
    SessionStarted,
    SessionStop,
    SessionUpdate,
    Stats,
    UtteranceEnd,
    UtteranceEnded,
    UtteranceSay,
    UtteranceStarted,
    VideoFormat,
    decode_client,
    encode,
    pack_media,
)
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet
from lipsync_fast.signals import WakeUp
from lipsync_fast.timing import SLOT_NS

STATS_S = 5.0
SLACK_NS = GRACE_NS + SLOT_NS // 2
FAREWELL_S = 2.0
"""For what waits to be sent, when a client is sent away."""
QUIET, PAUSE_SAMPLES = 0.02, 12_800
"""A pause in the sound: no sample beyond the one for as many as the other (0.8 s), or none."""


async def serve_native(socket: Socket, services: Services, first: str | bytes | None) -> None:
    """Speak lipsync.v1 until the client goes; ``first`` is a message that has come already."""
    code, reason = NORMAL, ""
    try:
        start, lease = await begin(socket, services, first)
        try:
            session = NativeSession(socket, services, start, lease)
            await session.run()
        finally:
            lease.release()
    except EndError as end:
        code, reason = end.code, end.reason
    except SocketClosedError:
        return
    await socket.close(code, reason)


class NativeSession:
    """A session that has been started."""

    def __init__(
        self,
        socket: Socket,
        services: Services,
        start: SessionStart,
        lease: AvatarLease,
    ) -> None:
        self._socket, self._services, self._start = socket, services, start
        self.number = services.numbers.session()
        self._sound = ClientAudio(start.audio, start.echo_audio)
        limits = services.config.limits
        self._burst = start.pace == "burst"
        late = limits.late_frames
        if self._burst:
            self._outbox = Outbox(socket, late, None, self._tick)
        else:
            self._outbox = Outbox(socket, late, self._left_out)
        self._alarm = services.timer.alarm(self._tick)
        self._broken = trio.Event()
        self._reason: Exception | None = None
        """What went wrong outside of the session's own tasks."""
        self._waits_since: float | None = None
        """For the client to say something, trio's time; None while it does not."""
        self._room = WakeUp()
        self._sequence = self._frames = self._skipped = self._errors = 0
        self._speaking = False
        self._refused_ns = 0
        """Sound is dropped, until then at least: too many others speak. 0 while it is not."""
        self._quiet = self._heard_ns = 0
        self._latency_ms: float | None = None
        trace = services.trace
        self._trace = None if trace is None else SessionTrace(trace, self.number)
        self._leases = [lease]
        """Versions of avatars that it uses: the newest last, those before it until the change."""
        self._set_avatar(lease, start.video)
        self._playout = self._new_playout()

    # ------------------------------------------------------------ what is shown
    def _set_avatar(self, lease: AvatarLease, video: VideoFormat) -> None:
        package = lease.package
        self._avatar, self._package, self._video = lease.name, package, video
        m = package.manifest
        if self._services.utterances.enabled:
            self._services.utterances.register(lease.key, package)
        self._xmp = xmp_packet(m.synthetic)
        mouth = video.content == "mouth"
        self._size = package.frame_size
        if not mouth:
            self._size = scaled_size(package.frame_size, video.max_width)
        as_it_is = self._size == package.frame_size
        self._own_ready = not mouth and as_it_is and video.quality in (None, m.jpeg.quality)
        self._look = Look(
            Content.MOUTH if mouth else Content.FRAME,
            video.quality,
            None if mouth or as_it_is else video.max_width,
        )

    @property
    def _appearance(self) -> Appearance:
        return Appearance(self._package.manifest, self._leases[-1].key, self._look)

    def _new_playout(self) -> Playout:
        services, live = self._services, self._services.config.live
        lookup = services.utterances if services.utterances.enabled else None
        if self._burst:
            return BurstPlayout(
                number=self.number,
                appearance=self._appearance,
                new_stream=services.numbers.stream,
                lookup=lookup,
            )
        settings = LiveSettings(
            number=self.number,
            new_stream=services.numbers.stream,
            own_ready=lambda: self._own_ready,
            idle=self._start.idle,
            margin_ns=services.margin_ns,
            hold_ns=int(live.hold_ms * 1e6),
            stride=lambda: services.idle_rate.stride,
            lookup=lookup,
        )
        return LivePlayout(settings, self._appearance, time.monotonic_ns())

    def _started(self) -> SessionStarted:
        scale = self._size[0] / self._package.frame_size[0]
        return SessionStarted(
            session=f"s{self.number}",
            avatar=self._avatar,
            width=self._size[0],
            height=self._size[1],
            fps=25,
            bounds=self._package.rect(0).scaled(scale),
            latency_ms=self._playout.latency_ms,
        )

    # ------------------------------------------------------------ life
    async def run(self) -> None:
        """Until the client goes.

        Raises:
            SocketClosedError, EndError: how it ended.
        """
        load = self._services.statistics.load
        load.sessions += 1
        self._services.statistics.playouts[self.number] = self._playout
        ended: list[EndError | SocketClosedError] = []
        try:
            async with trio.open_nursery() as nursery:

                async def until_end(task: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await task()
                    except (EndError, SocketClosedError) as error:
                        ended.append(error)
                        if isinstance(error, EndError) and error.code == POLICY:
                            self._outbox.close()  # the reason is still said; then it ends
                            await trio.sleep(FAREWELL_S)
                        nursery.cancel_scope.cancel()

                self._say(self._started())
                for task in (
                    self._receive_all,
                    self._begin_clock,
                    self._send_all,
                    self._tell,
                    self._leave_when_silent,
                    self._leave_when_drained,
                ):
                    nursery.start_soon(until_end, task)
        finally:
            load.sessions -= 1
            del self._services.statistics.playouts[self.number]
            self._alarm.close()
            self._set_speaking(False)
            self._services.pool.forget(self.number)
            for lease in self._leases:
                lease.release()
        raise ended[0] if ended else SocketClosedError

    def _say(self, message: ServerMessage) -> None:
        self._outbox.put(Item(encode(message)))

    def _mistake(self, error: LipsyncError) -> None:
        """Tell the client; one that does not stop making them is sent away."""
        self._errors += 1
        fatal = self._errors >= MOST_ERRORS
        code = code_of(error)
        self._services.statistics.count_error(code)
        self._say(ErrorMessage(code=code, message=str(error), fatal=fatal))
        if fatal:
            raise EndError(POLICY, f"{MOST_ERRORS} mistakes")

    # ------------------------------------------------------------ what comes in
    async def _receive_all(self) -> None:
        limit = self._services.config.limits.queued_s
        while True:
            self._waits_since = trio.current_time()
            message = await self._socket.receive()
            self._waits_since = None
            try:
                if isinstance(message, bytes):
                    self._hear(message)
                else:
                    await self._obey(decode_client(message))
            except LipsyncError as error:
                self._mistake(error)
            self._send_jobs()
            if isinstance(message, str) or self._hastened():
                self._tick()
            while self._playout.queued_s > limit:  # back-pressure: not read from
                await self._room.wait()

    def _hastened(self) -> bool:
        """Whether something is due before the clock would look again: sound alone seldom does."""
        wake, due = self._playout.wake_ns, self._alarm.due_ns
        return wake is not None and (due is None or wake < due)

    async def _leave_when_silent(self) -> None:
        limit = self._services.config.limits.idle_s
        while True:
            now = trio.current_time()
            left = limit if self._waits_since is None else self._waits_since + limit - now
            if left <= 0:
                raise silent(limit)
            await trio.sleep(left)

    def _hear(self, data: bytes) -> None:
        now = time.monotonic_ns()
        pcm = self._sound.push(data)
        if not self._playout.open and not self._admitted(pcm, now):
            return
        self._set_speaking(True)
        self._sound.keep(self._playout.push_audio(pcm, now))

    def _admitted(self, pcm: F32, now: int) -> bool:
        """Whether an utterance may begin; tells the client where not.

        What was refused stays refused: its rest is no utterance. One begins behind its end, or,
        for a microphone that is always open, behind a pause in the sound.
        """
        if self._refused_ns:
            loud = len(pcm) > 0 and float(np.abs(pcm).max()) > QUIET
            paused = (now - self._heard_ns) * 16_000 // 1_000_000_000
            self._quiet = max(paused, 0 if loud else self._quiet + len(pcm))
            self._heard_ns = now
            if now < self._refused_ns or self._quiet < PAUSE_SAMPLES:
                return False
        if self._speaking or self._services.admission.may_speak():
            self._refused_ns = 0
            return True
        self._refused_ns, self._quiet, self._heard_ns = now + int(RETRY_S * 1e9), 0, now
        self._sound.reset()
        self._services.statistics.count_refused("utterance")
        self._services.statistics.count_error("overloaded")
        self._say(
            SessionOverloaded(
                retry_after_ms=int(RETRY_S * 1000), message="as many speak as this server can serve"
            )
        )
        return False

    async def _obey(self, message: ClientMessage) -> None:
        now = time.monotonic_ns()
        if isinstance(message, UtteranceEnd):
            self._end_utterance(now)
        elif isinstance(message, UtteranceSay):
            await self._say_known(message.name)
        elif isinstance(message, SessionInterrupt):
            self._interrupt(now)
        elif isinstance(message, SessionUpdate):
            await self._update(message)
        elif isinstance(message, Ping):
            self._say(Pong(id=message.id))
        elif isinstance(message, SessionStop):
            raise EndError(NORMAL, "stopped")
        else:
            raise ProtocolError("the session has begun already; use session.update, or reconnect")

    def _end_utterance(self, now: int) -> None:
        if self._playout.open:
            last = self._sound.finish()
            if len(last):
                self._playout.push_audio(last, now)
            self._playout.end_utterance(now)
        else:
            self._sound.reset()
        self._refused_ns = 0
        self._set_speaking(self._playout.speaking)

    async def _say_known(self, name: str) -> None:
        """Say what was pre-rendered, as if the client had sent all of its sound."""
        if self._playout.open:
            raise ProtocolError("utterance.say: an utterance is open; send utterance.end before")
        known, avatar = self._services.utterances, self._package.manifest.name
        pcm = known.named(avatar, name)
        if pcm is None:
            raise UnknownUtteranceError(
                f"nothing was pre-rendered for avatar {self._avatar[:64]!r} as {name[:64]!r}"
            )
        self._refused_ns = 0
        self._sound.reset()
        if not self._admitted(pcm, time.monotonic_ns()):
            self._refused_ns = 0  # none of its sound is still to come
            return
        echo = pcm
        if self._sound.resamples_echo:  # takes some milliseconds
            echo = await trio.to_thread.run_sync(self._sound.for_echo, pcm)
        self._set_speaking(True)
        known.counts["named"] += 1
        self._sound.keep_whole(self._playout.speak(pcm, time.monotonic_ns()), echo)

    def _interrupt(self, now: int) -> None:
        self._playout.interrupt(now)
        self._services.pool.cancel(self.number, self._playout.epoch)
        self._sound.reset()
        self._sound.silence()
        self._outbox.drop_media()
        self._refused_ns = 0
        self._set_speaking(False)
        self._say(SessionInterrupted(last_frame=self._outbox.last_frame))
        self._room.ring()

    async def _update(self, message: SessionUpdate) -> None:
        lease, video = self._leases[-1], message.video or self._video
        if message.avatar is not None:
            new = await self._services.avatars.lease(message.avatar)
            if new.key == lease.key:
                new.release()
            else:
                lease = new
                self._leases.append(new)
        # What is being spoken goes on as it was; its pictures are told apart by their sizes.
        self._set_avatar(lease, video)
        self._playout.change(self._appearance)
        self._release_left()
        self._say(self._started())

    def _release_left(self) -> None:
        """Let go of versions that no more pictures are made of."""
        for lease in self._leases[:-1]:
            if lease.key != self._playout.avatar:
                lease.release()
                self._leases.remove(lease)

    # ------------------------------------------------------------ the clock
    async def _begin_clock(self) -> None:
        self._tick()
        await self._broken.wait()
        assert self._reason is not None
        raise self._reason

    def _tick(self) -> None:
        """Show what is due, and ask for what comes; in any task, which fails in none of its own.

        Where the client takes frames as fast as it can, and has no room, the outbox calls again.
        """
        if self._broken.is_set() or (self._burst and not self._outbox.has_room):
            return
        try:
            for event in self._playout.tick(time.monotonic_ns()):
                self._emit(event)
            self._send_jobs()
        except Exception as error:
            self._reason = error
            self._broken.set()
            return
        self._set_speaking(self._playout.speaking)
        if len(self._leases) > 1:
            self._release_left()
        self._room.ring()
        self._alarm.set(self._playout.wake_ns)

    def _send_jobs(self) -> None:
        jobs, urgent_ns = self._playout.jobs, 0
        if jobs and not self._burst:
            margin_ns = self._services.margin_ns()
            urgent_ns = urgent_before(
                time.monotonic_ns(), margin_ns, self._playout.margin_ns, SLACK_NS
            )
        while jobs:
            job, pcm = jobs.popleft()
            urgent = job.deadline_ns < urgent_ns
            pending = Pending(job, pcm, self._answered, self._lost, urgent)
            if self._trace is not None:
                self._trace.asked(pending)
            self._services.pool.submit(pending)

    def _answered(self, answer: Answer, jpeg: memoryview) -> None:
        if self._trace is not None:
            self._trace.answered(answer)
        if self._playout.answered(answer, bytes(jpeg)):
            self._tick()

    def _lost(self, job: Job) -> Job | None:
        now = time.monotonic_ns()
        again = self._playout.lost(job, now)
        self._alarm.set(now)
        return again

    # ------------------------------------------------------------ what goes out
    def _emit(self, event: Event) -> None:
        if isinstance(event, Picture):
            self._emit_picture(event)
        elif isinstance(event, Started):
            self._say(UtteranceStarted(utterance=event.utterance))
        else:
            self._emit_end(event)

    def _emit_end(self, event: Ended) -> None:
        self._sound.ended(event.utterance)
        if event.dropped == event.frames and self._services.pool.capacity == 0:
            self._services.statistics.count_error("engine_lost")
            message = "no engine could make the frames; it will be replaced"
            self._say(ErrorMessage(code="engine_lost", message=message, fatal=False))
        self._say(
            UtteranceEnded(utterance=event.utterance, frames=event.frames, dropped=event.dropped)
        )

    def _emit_picture(self, picture: Picture) -> None:
        if picture.frame is not None:
            echo = self._sound.echo(picture.utterance, picture.frame)
            if echo:
                self._put_media(MediaType.AUDIO, picture, echo, EMPTY, None)
        jpeg, mouth = picture.jpeg, self._video.content == "mouth"
        if jpeg is None:
            there = (
                picture.avatar_frame < self._package.manifest.frame_count
            )  # else it is the last one's
            if mouth or not self._own_ready or not there:
                return  # none was made yet in this look
            jpeg = jpeg_with_xmp(bytes(self._package.frame_jpeg(picture.avatar_frame)), self._xmp)
        box = picture.box if mouth and picture.box is not None else Rect.of_size(self._size)
        kind = MediaType.MOUTH if mouth else MediaType.FRAME
        load = self._services.statistics.load
        load.late += bool(picture.frame is not None and picture.flags & Flag.REPEATED)
        timed = picture.frame is not None and not picture.flags & Flag.REPEATED
        traced = None if self._trace is None else self._trace.shown(picture)

        def sent() -> None:
            self._frames += 1
            load.frames += 1
            load.idle_frames += picture.frame is None
            load.bytes += len(jpeg)
            if traced is not None:
                traced()
            if timed:
                self._latency_ms = (time.monotonic_ns() - picture.ready_ns) / 1e6
                if not self._burst:
                    self._services.statistics.latencies.add(self._latency_ms)

        self._put_media(kind, picture, jpeg, box, sent)

    def _put_media(
        self,
        kind: MediaType,
        picture: Picture,
        payload: bytes,
        box: Rect,
        sent: Callable[[], None] | None,
    ) -> None:
        header = MediaHeader(
            type=kind,
            flags=picture.flags,
            sequence=self._sequence,
            utterance=picture.utterance,
            pts_us=picture.pts_ns // 1000,
            index=picture.avatar_frame,
            box=box,
            size=len(payload),
        )
        frame = None if kind == MediaType.AUDIO else self._sequence
        self._sequence += 1
        self._outbox.put(Item(pack_media(header) + payload, frame, True, sent))

    def _left_out(self, frames: int) -> None:
        """The client reads too slowly: it is told, and goes on with the newest picture."""
        self._skipped += frames
        self._services.statistics.load.skipped += frames
        self._say(self._stats())

    async def _send_all(self) -> None:
        await self._outbox.run()
        raise EndError(GOING_AWAY, "the server is going away")

    async def _leave_when_drained(self) -> None:
        """When the server drains: say what is to be said, then go."""
        await self._services.admission.draining.wait()
        while self._playout.speaking:
            await trio.sleep(0.05)
        self._outbox.close()
        await trio.sleep_forever()

    # ------------------------------------------------------------ how it goes
    async def _tell(self) -> None:
        while True:
            await trio.sleep(STATS_S)
            self._say(self._stats())

    def _stats(self) -> Stats:
        return Stats(
            frames=self._frames,
            late=self._playout.late,
            skipped=self._skipped,
            queued_ms=round(self._playout.queued_s * 1000, 1),
            latency_ms=None if self._latency_ms is None else round(self._latency_ms, 1),
        )

    def _set_speaking(self, speaking: bool) -> None:
        if speaking != self._speaking:
            self._speaking = speaking
            self._services.statistics.load.speaking += 1 if speaking else -1
