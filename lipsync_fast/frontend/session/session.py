# SPDX-License-Identifier: Apache-2.0
"""lipsync.v1 on one connection: a session from its start to its end.

    receiver ─► commands ──────────────┐
             └► PCM ─► intake ─► playout (live or burst) ─► jobs ─► pool
    outbox ◄─ media ◄─ driver ◄────────┘ ◄─ answers ◄────────────────┘

The front's timer (``playout/timer.py``) and answers that are waited for tick the driver, which
sends a picture without a change of tasks where the socket takes it. The session's own tasks
receive, send what has to wait, tell how it goes, and end it: when the client goes, stops, or is
silent for too long. All that is its own ends with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from lipsync_fast.errors import AvatarError, ClosingError, ProtocolError, SocketClosedError
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.avatars.leases import AvatarLease
from lipsync_fast.frontend.engines.trace import SessionTrace
from lipsync_fast.frontend.playout.burst import BurstPlayout
from lipsync_fast.frontend.playout.live import LivePlayout
from lipsync_fast.frontend.playout.plan import LiveSettings
from lipsync_fast.frontend.playout.playout import Ended, Event, Picture, Playout, Started
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.client_audio import ClientAudio
from lipsync_fast.frontend.session.driver import PlayoutDriver
from lipsync_fast.frontend.session.handshake import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL,
    POLICY,
    begin,
)
from lipsync_fast.frontend.session.intake import UtteranceIntake
from lipsync_fast.frontend.session.media import MediaSender
from lipsync_fast.frontend.session.outbox import Outbox
from lipsync_fast.frontend.session.receiver import Receiver
from lipsync_fast.frontend.session.shown_avatar import ShownAvatar
from lipsync_fast.frontend.session.spoken import SpokenUtterances
from lipsync_fast.frontend.session.statistics import SessionStatistics
from lipsync_fast.frontend.session.stream import StreamSender
from lipsync_fast.frontend.session.text import TextSpeaker
from lipsync_fast.logs import get_logger
from lipsync_fast.signals import until
from lipsync_fast.tokens.accounts import Visit
from lipsync_fast_client.protocol import (
    SUBPROTOCOL,
    ClientMessage,
    ErrorMessage,
    Ping,
    Pong,
    SessionInterrupt,
    SessionInterrupted,
    SessionStart,
    SessionStop,
    SessionUpdate,
    UtteranceEnd,
    UtteranceEnded,
    UtteranceSay,
    UtteranceStarted,
    VideoKeyframe,
)

log = get_logger("lipsync.front")
STATS_S = 5.0
TOLD = POLICY, INTERNAL_ERROR
"""Who is sent away with these has a message to read first."""
FAREWELL_S = 2.0
"""For what waits to be sent, when a client is sent away."""


async def serve_native(
    socket: Socket, visit: Visit, services: Services, first: str | bytes | None
) -> None:
    """Speak lipsync.v1 until the client goes; ``first`` is a message that has come already."""
    code, reason, visit.protocol = NORMAL, "", SUBPROTOCOL
    try:
        start, lease = await begin(socket, services, first)
        try:
            session = NativeSession(socket, visit, services, start, lease)
            await session.run()
        finally:
            lease.release()
    except ClosingError as end:
        code, reason = end.close_code, end.reason
        visit.why = reason
    except SocketClosedError:
        return
    await socket.close(code, reason)


class NativeSession:
    """A session that has been started: joins its parts, and gives them their tasks and their end.

    Args:
        visit: the connection's, which counts what it uses.
        start: what the client has asked for.
        lease: on the avatar that it begins with; released at its end.
    """

    def __init__(
        self,
        socket: Socket,
        visit: Visit,
        services: Services,
        start: SessionStart,
        lease: AvatarLease,
    ) -> None:
        self._services = services
        self._number = number = services.numbers.session()
        late_frames, paced = services.config.limits.late_frames, start.pace != "burst"
        self._paced, self._idle, self._told_stride = paced, paced and start.idle, 1
        tracing = services.tracing
        self._spoken = SpokenUtterances(
            services.statistics,
            number,
            paced,
            None if tracing is None else partial(tracing.begin, tracing.caller(socket.header)),
        )
        self._statistics = SessionStatistics(services.statistics, paced, self._spoken)
        self._outbox = (
            Outbox(socket, late_frames, self._on_left_out)
            if paced
            else Outbox(socket, late_frames, None, self._on_room)
        )
        trace = None if services.trace is None else SessionTrace(services.trace, number)
        self._shown = ShownAvatar(services, lease, start.video, visit)
        self._playout = _playout(number, services, start, self._shown, lambda: self._media.pictures)
        self._audio = ClientAudio(start.audio, start.echo_audio)
        self._stream = StreamSender(
            services,
            self._outbox,
            paced,
            self._statistics.on_left_out,
            lambda: services.idle_rate.stride if paced else 1,
        )
        self._media = MediaSender(
            self._outbox, self._shown, self._audio, self._statistics, self._stream, trace
        )
        self._media.pictures = start.pictures
        post = self._outbox.post_message
        self._intake = UtteranceIntake(
            services,
            self._playout,
            self._shown,
            self._audio,
            visit=visit,
            post=post,
            heard=lambda number, samples, now_ns: self._spoken.on_heard(
                number, self._shown.name, samples, now_ns
            ),
            ended=lambda: self._driver.tick(),
        )
        self._driver = PlayoutDriver(
            number,
            self._playout,
            services,
            paced=paced,
            trace=trace,
            spoken=self._spoken,
            has_room=None if paced else lambda: self._outbox.has_room,
            show=self._show,
            ticked=self._on_tick,
        )
        self._text = TextSpeaker(
            services, self._playout, self._intake, self._driver, start.audio, post
        )
        self._receiver = Receiver(
            socket,
            services,
            self._playout,
            self._driver,
            on_audio=self._hear,
            on_message=self._obey,
            post=post,
            taken=lambda: self._statistics.frames,
            waits=self._client_waits,
        )

    async def run(self) -> None:
        """Until the client goes.

        Raises:
            SocketClosedError, ClosingError: how it ended.
        """
        front = self._services.statistics
        began = time.monotonic()
        front.load.sessions += 1
        front.playouts[self._number] = self._playout
        ended: list[ClosingError | SocketClosedError] = []
        try:
            async with trio.open_nursery() as nursery:

                async def until_end(task: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await task()
                    except (ClosingError, SocketClosedError, AvatarError) as given:
                        error = self._damaged(given) if isinstance(given, AvatarError) else given
                        ended.append(error)
                        if isinstance(error, ClosingError) and error.close_code in TOLD:
                            self._outbox.close()  # the reason is still said; then it ends
                            await trio.sleep(FAREWELL_S)
                        nursery.cancel_scope.cancel()

                self._post_started()
                for task in (
                    self._receiver.run,
                    self._driver.run,
                    self._text.run,
                    self._send_all,
                    self._report,
                    self._receiver.leave_when_silent,
                    self._leave_when_drained,
                ):
                    nursery.start_soon(until_end, task)
        finally:
            front.load.sessions -= 1
            front.session_time.add(time.monotonic() - began)
            self._spoken.break_off("the session has ended", _failure(ended))
            del front.playouts[self._number]
            self._intake.close()
            self._driver.close()
            self._stream.close()
            self._shown.close()
        raise ended[0] if ended else SocketClosedError

    # ------------------------------------------------------------ what the client says
    def _hear(self, data: bytes) -> None:
        if not self._text.busy:
            self._intake.push(data)

    async def _obey(self, message: ClientMessage) -> None:
        if isinstance(message, UtteranceEnd):
            if not self._text.busy:  # texts end by themselves
                self._intake.end_utterance()
        elif isinstance(message, UtteranceSay):
            await self._text.say(message)
        elif isinstance(message, SessionInterrupt):
            self._interrupt()
        elif isinstance(message, SessionUpdate):
            await self._update(message)
        elif isinstance(message, VideoKeyframe):
            self._stream.want_key()
        elif isinstance(message, Ping):
            self._outbox.post_message(Pong(id=message.id))
        elif isinstance(message, SessionStop):
            raise ClosingError(NORMAL, "stopped")
        else:
            raise ProtocolError("the session has begun already; use session.update, or reconnect")

    def _interrupt(self) -> None:
        self._text.interrupt()
        self._driver.interrupt()
        self._spoken.break_off("interrupted")
        self._outbox.drop_media()
        self._stream.begin_anew()
        self._intake.interrupt()
        self._outbox.post_message(SessionInterrupted(last_frame=self._outbox.last_frame))

    async def _update(self, message: SessionUpdate) -> None:
        if message.avatar is not None or message.video is not None:
            await self._shown.update(message)
            # What is being spoken goes on as it was; its pictures are told apart by their sizes.
            self._playout.change(self._shown.appearance)
            self._shown.release_left(self._playout.avatar)
        if message.pictures is not None:
            if message.pictures and not self._media.pictures:
                self._stream.begin_anew()
            self._media.pictures = message.pictures
            self._driver.tick()
        self._post_started()

    def _post_started(self) -> None:
        self._outbox.post_message(self._shown.started(self._number, self._playout.latency_ms))

    # ------------------------------------------------------------ what it is shown
    def _show(self, event: Event) -> None:
        if isinstance(event, Picture):
            self._media.send(event)
        elif isinstance(event, Started):
            self._outbox.post_message(UtteranceStarted(utterance=event.utterance))
        else:
            self._show_end(event)

    def _show_end(self, event: Ended) -> None:
        self._spoken.end(event)
        self._audio.forget_echo(event.utterance)
        if event.dropped == event.frames and self._services.pool.capacity == 0:
            self._services.statistics.count_error("engine_lost")
            message = "no engine could make the frames; it will be replaced"
            self._outbox.post_message(
                ErrorMessage(code="engine_lost", message=message, fatal=False)
            )
        self._outbox.post_message(
            UtteranceEnded(
                utterance=event.utterance,
                frames=event.frames,
                dropped=event.dropped,
                reason="quiet" if event.quiet else "end",
                left_out=event.left_out,
            )
        )

    def _on_tick(self) -> None:
        self._intake.set_speaking(self._playout.speaking)
        self._statistics.follow(self._playout)
        if self._told_stride != self._stride and self._playout.speaking:
            self._post_statistics()
        self._shown.release_left(self._playout.avatar)

    def _on_room(self) -> None:
        self._driver.tick()

    def _on_left_out(self, frames: int) -> None:
        """The client reads too slowly: it is told, and goes on with the newest picture."""
        self._statistics.on_left_out(frames)
        self._post_statistics()

    def _post_statistics(self) -> None:
        self._told_stride = self._stride
        self._outbox.post_message(self._statistics.message(self._playout, self._stride))

    @property
    def _stride(self) -> int:
        """Of what is spoken, one frame in so many is shown now."""
        return self._services.speech_rate.stride if self._paced else 1

    async def _report(self) -> None:
        while True:
            await trio.sleep(STATS_S)
            self._post_statistics()

    def _client_waits(self) -> bool:
        """Whether it was sent all pictures that there are, and more are to come."""
        return not self._outbox.frames and (self._idle or self._playout.speaking)

    # ------------------------------------------------------------ its end
    def _damaged(self, error: AvatarError) -> ClosingError:
        """The avatar's own pictures cannot be read any more: its files were changed in place."""
        name = self._shown.name
        log.error("an avatar fails in use", avatar=name, reason=str(error))
        self._services.statistics.count_error(error.code)
        message = f"avatar {name!r} was damaged while it was in use; name another"
        self._outbox.post_message(ErrorMessage(code=error.code, message=message, fatal=True))
        return ClosingError(INTERNAL_ERROR, "the avatar was damaged")

    async def _send_all(self) -> None:
        await self._outbox.run()
        raise ClosingError(GOING_AWAY, "the server is going away")

    async def _leave_when_drained(self) -> None:
        """When the server drains: say what is to be said, then go."""
        await self._services.admission.draining.wait()
        await until(lambda: not self._playout.speaking)
        self._outbox.close()
        await trio.sleep_forever()


def _failure(ended: Sequence[ClosingError | SocketClosedError]) -> str:
    """Why a session that has ended failed; nothing where it did not."""
    if isinstance(sys.exception(), Exception):
        return "a defect of the server; its log has it"
    by = ended[0] if ended else None
    return by.reason if isinstance(by, ClosingError) and by.close_code == INTERNAL_ERROR else ""


def _playout(
    number: int,
    services: Services,
    start: SessionStart,
    shown: ShownAvatar,
    pictures: Callable[[], bool],
) -> Playout:
    """The clock that a client has asked for; one without slots asks for all pictures."""
    lookup = services.utterances if services.utterances.enabled else None
    if start.pace == "burst":
        return BurstPlayout(
            number=number,
            appearance=shown.appearance,
            new_stream=services.numbers.stream,
            lookup=lookup,
        )
    settings = LiveSettings(
        number=number,
        new_stream=services.numbers.stream,
        own_ready=lambda: shown.own_ready,
        idle=start.idle,
        margin_ns=services.margin_ns,
        hold_ns=int(services.config.live.hold_ms * 1e6),
        stride=lambda: services.idle_rate.stride,
        speech_stride=lambda: services.speech_rate.stride,
        pictures=pictures,
        lookup=lookup,
    )
    return LivePlayout(settings, shown.appearance, time.monotonic_ns())
