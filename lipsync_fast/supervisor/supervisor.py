# SPDX-License-Identifier: Apache-2.0
"""The supervisor's loop: what happens, and what follows from it.

    a child has died ──► who depends on it is told at once; a spare takes over; its slot is refilled
    a message came   ──► states, loads, avatars; whoever must know is told
    silence          ──► the child is killed, and has died
    SIGTERM, SIGINT  ──► fronts drain, then all stop; a second one: at once

One thread, one nursery. ``roster`` knows who there is, ``talk`` speaks with them, ``pairs`` gives
them rings; this says when.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import trio
import zmq

from lipsync_fast.errors import ServerError
from lipsync_fast.ipc.control import (
    VERSION,
    AnyMessage,
    AvatarState,
    Bye,
    ChangeAvatar,
    Drain,
    FrontHeartbeat,
    Heartbeat,
    Hello,
    Hub,
    PeerGone,
    Ready,
    Stop,
    WantAvatar,
)
from lipsync_fast.ipc.status import FrontLoad
from lipsync_fast.logs import get_logger
from lipsync_fast.notify import Notifier
from lipsync_fast.supervisor.avatar_rollout import Changes
from lipsync_fast.supervisor.children import Child, Slot
from lipsync_fast.supervisor.control import Talk
from lipsync_fast.supervisor.ports import Bound
from lipsync_fast.supervisor.ring_broker import Pairs
from lipsync_fast.supervisor.roster import Roster
from lipsync_fast.supervisor.spawner import Births
from lipsync_fast.supervisor.status import About

START_S = 60.0
"""A child that is not ready by then hangs."""
STOP_S = 2.0
"""From Stop to SIGKILL."""
SPARES_AFTER_S = 1.0
"""Spares start so long after the server serves: its first clients come first."""
ENGINE_FAILURES, FRONT_FAILURES = 3, 5
"""Young deaths in a row in a slot that end the server: of engines, only until it has served."""
REPORT_S = 1.0

log = get_logger("lipsync.supervisor")


@dataclass
class Parts:
    """What was made before the loop began, and is closed after it.

    Attributes:
        bound: listening sockets; closed here when the server drains.
        early: signals that have come before the loop could take them.
        on_ready: called once, when clients can be served.
    """

    about: About
    births: Births
    slots: list[Slot]
    bound: list[Bound]
    notifier: Notifier
    early: list[int] = field(default_factory=list)
    on_ready: Callable[[], None] = lambda: None


class Supervisor:
    """A server's life, from its children's start to their end. All methods: one thread.

    Args:
        parts: slots may hold children already.
        hub: the control socket.
    """

    def __init__(self, parts: Parts, hub: Hub) -> None:
        self._parts, self._config = parts, parts.about.config
        self._avatars = parts.births.avatars
        self._roster = roster = Roster(parts.slots)
        self._talk = Talk(hub, roster, self._avatars, parts.about, self._heard, self._to_change)
        self._changes = Changes(roster, self._avatars, self._talk)
        self._pairs = Pairs(
            lambda: roster.children, self._config.fronts, self._note, self._without_rings
        )
        self._serving, self._changed, self._end = trio.Event(), trio.Event(), trio.Event()
        self._grace, self._ending = trio.CancelScope(), False
        self._exit, self._failure = 0, ""

    # ------------------------------------------------------------ life
    async def run(self) -> int:
        """Serve until told to stop.

        Returns:
            The exit status.

        Raises:
            ServerError: children do not start, or die again and again.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for slot in self._parts.slots:
                    nursery.start_soon(self._keep, slot)
                for task in (self._talk.listen, self._pairs.run, self._watch, self._report):
                    nursery.start_soon(task)
                nursery.start_soon(self._obey_signals)
                if self._config.avatars.watch:
                    nursery.start_soon(self._changes.watch, self._config.avatars.watch)
                if self._parts.notifier.watchdog_s is not None:
                    nursery.start_soon(self._feed_watchdog, self._parts.notifier.watchdog_s / 2)
                await self._end.wait()
                await self._stop_all()
                nursery.cancel_scope.cancel()
        finally:
            self._pairs.close()
            self._avatars.close()
        if self._failure:
            raise ServerError(self._failure)
        return self._exit

    def _without_rings(self, reason: str) -> None:
        if not self._serving.is_set():
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._end.set()

    async def _stop_all(self) -> None:
        """Tell all to leave; who has not within ``STOP_S`` is killed by who has made the parts."""
        self._ending = True
        self._parts.notifier.stopping()
        for child in self._roster.children:
            if child.ready_at is None:
                child.kill("the server ends")  # it would not listen before it is ready
            else:
                self._talk.send(child, Stop())
        self._grace.deadline = trio.current_time() + STOP_S
        with self._grace:
            while self._roster.children:
                await self._changed.wait()

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as coming:
            for number in self._parts.early:
                self._signal(number)
            async for number in coming:
                self._signal(number)

    def _signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            return  # a terminal that was closed is no reason to stop
        if self._roster.state == "starting":
            self._end.set()  # there is nobody whose speech could be finished
            return
        if self._roster.state == "serving":
            self._roster.state = "draining"
            self._nursery.start_soon(self._drain)
            return
        log.warning("stopping at once")
        self._grace.cancel()
        self._exit = 130 if number == signal.SIGINT else 0
        self._end.set()

    async def _drain(self) -> None:
        """Let fronts end what they have begun, for ``drain_seconds`` at most; then end."""
        log.info(
            "draining: no new clients; once more to stop at once",
            seconds=self._config.drain_seconds,
            sessions=sum(front.front_load.sessions for front in self._roster.fronts),
        )
        self._parts.notifier.stopping()
        for bound in self._parts.bound:
            bound.close()
        for front in self._roster.fronts:
            self._talk.send(front, Drain())
        with trio.move_on_after(self._config.drain_seconds) as scope:
            while any(front.state != "draining" for front in self._roster.fronts):
                await self._changed.wait()
        if scope.cancelled_caught:
            log.warning("sessions were cut off: drain_seconds are over")
        self._end.set()

    async def _feed_watchdog(self, every_s: float) -> None:
        while True:
            self._parts.notifier.alive()
            await trio.sleep(every_s)

    # ------------------------------------------------------------ slots
    async def _keep(self, slot: Slot) -> None:
        """Fill a slot again whenever its child has died."""
        if slot.spare and slot.child is None:
            await self._serving.wait()
            await trio.sleep(SPARES_AFTER_S)
        while not self._ending and not (slot.role == "front" and self._roster.state == "draining"):
            child = slot.child or self._start(slot)
            if child is None:
                await trio.sleep(self._config.engines.backoff_most_s)
                continue
            self._born(child)
            await _death(child)
            pause = slot.pause(self._config.engines)
            slot.retry_at = time.monotonic() + pause
            self._lost(child, pause)
            await trio.sleep(pause)
            slot.restarts += 1

    def _start(self, slot: Slot) -> Child | None:
        try:
            capacity = self._roster.known_capacity(slot.device)
            return self._parts.births.start(slot, capacity, modest=self._roster.enough)
        except OSError as error:
            log.error("cannot start a process", role=slot.role, reason=error.strerror)
            return None

    def _born(self, child: Child) -> None:
        log.info("started", child=child.name, pid=child.pid, slot=child.slot.number)
        self._pairs.look()
        if child.role == "engine":
            self._avatars.shared.offer(child, child.born_with)
            self._talk.tell_engines()  # fronts know of it before they get its rings

    def _lost(self, child: Child, pause: float) -> None:
        """A child has died: first tell who waits for it, then all else."""
        worked, slot = child.state == "ready", child.slot
        slot.child = None
        child.state = "gone"
        gone = PeerGone(peer=child.name)
        if child.role == "engine":
            if worked:
                self._roster.take_over(child)
            # Who works now, and who no longer lives: what the dead one owed can go to its heir.
            self._talk.tell_engines()
            for front in self._roster.fronts:
                self._talk.send(front, gone)
            self._talk.ask_where_needed()
        else:
            for engine in self._roster.engines:
                self._talk.send(engine, gone)
        self._pairs.forget(child)
        child.release()
        self._tell_of_death(child, pause)
        self._note()

    def _tell_of_death(self, child: Child, pause: float) -> None:
        slot, how = child.slot, child.ending()
        slot.reason = how
        if self._ending or (self._roster.state == "draining" and child.role == "front"):
            log.info("ended", child=child.name, how=how)
            return
        log.warning(
            "died; to be replaced",
            child=child.name,
            how=how,
            lived_s=round(time.monotonic() - child.born, 1),
            in_s=round(pause, 2),
        )
        if child.role == "engine":
            for name in self._avatars.died(child):
                log.error("an avatar kills engines; no longer in use", avatar=name)
            if self._none_starts() and not self._serving.is_set():
                self._fail(f"engines do not start ({how}); the lines above say why")
        elif slot.failures >= FRONT_FAILURES:
            self._fail(f"fronts die again and again ({how}); the lines above say why")

    def _none_starts(self) -> bool:
        """Whether engines die young in all places: a lost GPU is no reason not to use others."""
        slots = [slot for slot in self._parts.slots if slot.role == "engine" and not slot.spare]
        return all(slot.failures >= ENGINE_FAILURES for slot in slots)

    # ------------------------------------------------------------ watching
    async def _watch(self) -> None:
        """Kill children that are silent."""
        config = self._config.engines
        every = min(config.heartbeat_s, config.hung_s / 4)
        while True:
            begun = time.monotonic()
            await trio.sleep(every)
            now = time.monotonic()
            self._talk.take()
            late = now - begun - every
            for child in self._roster.children:
                if late > config.hung_s / 4:  # it was this process that stood still
                    child.heard = max(child.heard, now)
                silent = now - child.heard
                if child.ready_at is None:
                    if now - child.born > START_S:
                        child.kill(f"not ready after {START_S:g} s")
                elif silent > config.hung_s:
                    child.kill(f"hung, silent for {silent:.1f} s")

    # ------------------------------------------------------------ messages
    def _heard(self, child: Child, message: AnyMessage) -> None:
        child.heard = time.monotonic()
        if isinstance(message, Heartbeat):
            child.load = message.load
        elif isinstance(message, FrontHeartbeat):
            try:
                child.front_load = msgspec.msgpack.decode(message.load, type=FrontLoad)
            except msgspec.MsgspecError:
                self._talk.unreadable += 1
            self._changes.look()
        elif isinstance(message, Hello):
            self._greet(child, message)
        elif isinstance(message, Ready):
            child.maker = message.maker
            self._ready(child, message.capacity)
        elif isinstance(message, WantAvatar):
            if self._talk.want(message.name):
                self._nursery.start_soon(self._talk.look_for, message.name)
        elif isinstance(message, AvatarState):
            self._avatar_state(child, message)
        elif isinstance(message, Bye):
            self._bye(child, message.reason)

    def _greet(self, child: Child, hello: Hello) -> None:
        child.greeted = True
        if hello.version != VERSION:
            log.error("speaks another version", child=child.name, its=hello.version)
            self._talk.send(child, Stop())
            return
        child.device = hello.device or child.device
        if child.role == "front":
            self._talk.tell_engines()
            self._talk.tell_status()
            if self._roster.state == "draining":
                self._talk.send(child, Drain())
        else:
            self._talk.ask_missing(child)
        self._pairs.look()

    def _ready(self, child: Child, capacity: float) -> None:
        if child.ready_at is not None:
            return
        child.ready_at = child.heard
        child.slot.ever_ready = True
        if child.role == "engine":
            child.avatars |= child.born_with - child.errors.keys()
            child.asked -= child.born_with
            self._talk.forget_gone(child)
            self._roster.enrol(child, capacity)
            self._talk.tell_engines()
        else:
            child.state = "ready"
        log.info(
            "ready",
            child=child.name,
            after_s=round(child.ready_at - child.born, 3),
            **({"frames_per_s": round(capacity, 1)} if capacity else {}),
        )
        self._pairs.look()
        self._note()

    def _bye(self, child: Child, reason: str) -> None:
        child.farewell = reason
        worked, child.state = child.state == "ready", "draining"
        if child.role == "engine":
            if worked:
                self._roster.take_over(child)
            self._talk.tell_engines()
        self._note()

    def _note(self) -> None:
        """Something about children has changed."""
        self._changed.set()
        self._changed = trio.Event()
        self._changes.look()
        ready = self._roster.can_serve and self._pairs.any_given
        if self._roster.state == "starting" and ready:
            self._roster.state = "serving"
            self._serving.set()
            self._parts.notifier.ready()
            about = self._parts.about
            after = round(time.monotonic() - about.born, 3)
            ports = ",".join(map(str, about.ports))
            log.info("serving", ports=ports, http_port=about.http_port, after_s=after)
            self._parts.on_ready()

    def _to_change(self, asker: str, wanted: ChangeAvatar) -> None:
        """Somebody wants an avatar loaded or unloaded."""
        self._nursery.start_soon(self._changes.answer, asker, wanted)

    def _avatar_state(self, engine: Child, told: AvatarState) -> None:
        default = told.name == self._avatars.default_key
        self._talk.avatar_state(engine, told)
        self._changes.look()
        if told.error and default and not self._serving.is_set():
            self._fail(f"avatar {told.name!r} cannot be used: {told.error}")

    # ------------------------------------------------------------ telling
    async def _report(self) -> None:
        """Tell fronts and the service manager how things are, every second."""
        while True:
            await trio.sleep(REPORT_S)
            self._talk.rates.look(self._roster.fronts)
            self._talk.ask_where_needed()
            self._talk.tell_engines()
            self._talk.tell_status()
            status = self._talk.status()
            working = sum(engine.state == "ready" for engine in status.engines)
            sessions = sum(front.load.sessions for front in status.fronts)
            self._parts.notifier.status(
                f"{status.state}: {working} engines, {sessions} sessions, "
                f"{math.floor(status.frames_per_s + 0.5)} frames/s"
            )


async def _death(child: Child) -> None:
    """Wait until a child has died."""
    if child.pidfd >= 0:
        await trio.lowlevel.wait_readable(child.pidfd)
    else:
        await trio.to_thread.run_sync(child.process.wait, abandon_on_cancel=True)
    child.process.wait()


async def supervise(parts: Parts) -> int:
    """Open the control socket and run the server; see ``Supervisor.run``."""
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        with contextlib.closing(Hub.bind(context, parts.births.folder)) as hub:
            return await Supervisor(parts, hub).run()
    finally:
        context.destroy(linger=100)
