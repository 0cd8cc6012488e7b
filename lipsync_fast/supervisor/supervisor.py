# SPDX-License-Identifier: Apache-2.0
"""The supervisor's loop: what happens, and what follows from it.

    a child has died ──► who depends on it is told at once; a spare takes over; its slot is refilled
    a message came   ──► states, loads, avatars; whoever must know is told
    silence          ──► the child is killed, and has died
    SIGHUP           ──► the certificate is read again
    SIGTERM, SIGINT  ──► fronts drain, then all stop (``shutdown``)

One thread, one nursery. ``roster`` knows who there is, ``control`` speaks with them,
``ring_broker`` gives them rings; this says when.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio
import zmq

from lipsync_fast.errors import ConfigError
from lipsync_fast.ipc.control import (
    VERSION,
    AnyMessage,
    AvatarState,
    Bye,
    ChangeAvatar,
    Drain,
    FrontHeartbeat,
    GatewayHeartbeat,
    Heartbeat,
    Hello,
    NewCertificate,
    PeerGone,
    Ready,
    Stop,
    Uses,
    WantAvatar,
)
from lipsync_fast.ipc.control_socket import Hub
from lipsync_fast.ipc.status import read_gateway_load, read_load
from lipsync_fast.logs import get_logger
from lipsync_fast.notify import Notifier
from lipsync_fast.signals import Changes
from lipsync_fast.supervisor.avatar_loader import AvatarLoader
from lipsync_fast.supervisor.avatar_rollout import AvatarRollout
from lipsync_fast.supervisor.children import Child, ChildSlot, why_not_started
from lipsync_fast.supervisor.control import ControlServer
from lipsync_fast.supervisor.ledger import Ledger, keep
from lipsync_fast.supervisor.ports import BoundPort
from lipsync_fast.supervisor.ring_broker import RingBroker
from lipsync_fast.supervisor.roster import Roster
from lipsync_fast.supervisor.run_folder import RunFolder
from lipsync_fast.supervisor.shutdown import Shutdown
from lipsync_fast.supervisor.silence import waited_s
from lipsync_fast.supervisor.spawner import Spawner
from lipsync_fast.supervisor.starting import used_by
from lipsync_fast.supervisor.status import ServerFacts
from lipsync_fast.tls import read_certificate

SPARES_AFTER_S = 1.0
"""Spares start so long after the server serves: its first clients come first."""
ENGINE_FAILURES, FRONT_FAILURES = 3, 5
"""Young deaths in a row in a slot that end the server: of engines, only until it has served."""
REPORT_S = 1.0
KEEP_SPOKEN_S = 60.0

log = get_logger("lipsync.supervisor")


@dataclass
class ServerParts:
    """What was made before the loop began, and is closed after it.

    Attributes:
        ports: listening sockets; closed by ``Shutdown`` when the server drains.
        folder: of the control socket.
        spoken: file that keeps how long was spoken today, from one run to the next.
        early_signals: that have come before the loop could take them.
        on_ready: called once, when clients can be served.
    """

    facts: ServerFacts
    spawner: Spawner
    slots: list[ChildSlot]
    ports: list[BoundPort]
    notifier: Notifier
    folder: RunFolder
    spoken: Path | None = None
    early_signals: list[int] = field(default_factory=list)
    on_ready: Callable[[], None] = lambda: None


class Supervisor:
    """A server's life, from its children's start to their end. All methods: one thread.

    Args:
        parts: slots may hold children already.
        hub: the control socket.
    """

    def __init__(self, parts: ServerParts, hub: Hub) -> None:
        self._parts, self._config = parts, parts.facts.config
        self._catalogue = catalogue = parts.spawner.catalogue
        self._roster = roster = Roster(parts.slots)
        self._ledger, self._spoken = Ledger(), b""
        if parts.spoken is not None:
            self._ledger.restore(parts.spoken)
        self._serving, self._changes = trio.Event(), Changes()
        self._control = control = ControlServer(
            hub, roster, catalogue, parts.facts, self._on_message, self._on_change_avatar
        )
        self._loader = AvatarLoader(roster, catalogue, control)
        self._rollout = AvatarRollout(roster, catalogue, self._loader, control)
        self._rings = RingBroker(
            lambda: roster.children, self._config.fronts, self._on_news, self._on_rings_failed
        )
        self._shutdown = Shutdown(
            roster,
            control,
            parts.ports,
            parts.notifier,
            self._config.drain_seconds,
            self._changes,
            lambda: self._nursery.start_soon(self._renew_certificate),
        )

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
                    nursery.start_soon(self._keep_filled, slot)
                for task in (self._control.run, self._rings.run, self._watch, self._report):
                    nursery.start_soon(task)
                nursery.start_soon(self._control.keep_open, self._parts.folder)
                nursery.start_soon(self._shutdown.obey_signals, self._parts.early_signals)
                nursery.start_soon(self._keep_spoken)
                nursery.start_soon(self._rollout.follow, self._config.avatars.watch, self._serving)
                if self._parts.notifier.watchdog_s is not None:
                    nursery.start_soon(self._feed_watchdog, self._parts.notifier.watchdog_s / 2)
                await self._shutdown.wanted()
                await self._shutdown.stop_all()
                nursery.cancel_scope.cancel()
        finally:
            self._write_spoken()
            self._rings.close()
            self._catalogue.close()
        return self._shutdown.exit_status()

    async def _feed_watchdog(self, every_s: float) -> None:
        while True:
            self._parts.notifier.alive()
            await trio.sleep(every_s)

    # ------------------------------------------------------------ children start and die
    async def _keep_filled(self, slot: ChildSlot) -> None:
        """Fill a slot again whenever its child has died."""
        if slot.spare and slot.child is None:
            await self._serving.wait()
            await trio.sleep(SPARES_AFTER_S)
        while not self._is_leaving(slot):
            child = slot.child or self._start(slot)
            if child is None:
                await trio.sleep(self._config.engines.backoff_most_s)
                continue
            self._on_start(child)
            await _death(child)
            pause = slot.backoff(self._config.engines)
            slot.retry_at = time.monotonic() + pause
            self._on_death(child, pause)
            await trio.sleep(pause)
            slot.restarts += 1

    def _is_leaving(self, slot: ChildSlot) -> bool:
        """Whether its child ends as it should when it ends, and has no successor."""
        draining = slot.role != "engine" and self._roster.state == "draining"
        return self._shutdown.is_stopping or draining

    def _start(self, slot: ChildSlot) -> Child | None:
        try:
            capacity = self._roster.known_capacity(slot.device)
            return self._parts.spawner.start(slot, capacity, modest=self._roster.has_enough_engines)
        except OSError as error:
            log.error("cannot start a process", role=slot.role, reason=why_not_started(error))
            return None

    def _on_start(self, child: Child) -> None:
        log.info("started", child=child.name, pid=child.pid, slot=child.slot.number)
        self._rings.on_children_changed()
        if child.role == "engine":
            self._catalogue.shared.offer(child, child.initial_avatars)
            self._control.publish_engines()  # fronts know of it before they get its rings

    def _on_death(self, child: Child, pause: float) -> None:
        """A child has died: first tell who waits for it, then all else."""
        worked, slot = child.state == "ready", child.slot
        slot.child = None
        child.state = "gone"
        gone = PeerGone(peer=child.name)
        if child.role == "engine":
            if worked:
                self._roster.promote_spare(child)
            # Who works now, and who no longer lives: what the dead one owed can go to its heir.
            self._control.publish_engines()
            for front in self._roster.fronts:
                self._control.send(front, gone)
            self._loader.load_where_needed()
        elif child.role == "front":
            for engine in self._roster.engines:
                self._control.send(engine, gone)
        if child.role != "engine":
            self._tell_uses(child, self._ledger.forget(child.name))
        self._rings.forget(child)
        child.release()
        self._judge_death(child, pause)
        self._on_news()

    def _judge_death(self, child: Child, pause: float) -> None:
        """Log a death, and end a server whose children do nothing but die."""
        slot, how = child.slot, child.how_it_ended()
        slot.reason = how
        if self._is_leaving(slot):
            log.info("ended", child=child.name, how=how)
            return
        log.warning(
            "died; to be replaced",
            child=child.name,
            how=how,
            lived_s=round(time.monotonic() - child.started_at, 1),
            in_s=round(pause, 2),
        )
        if child.role == "engine":
            for key in self._catalogue.on_death(child):
                log.error("an avatar kills engines; no longer in use", avatar=key)
            if self._no_engine_starts() and not self._serving.is_set():
                self._shutdown.fail(f"engines do not start ({how}); the lines above say why")
        elif child.role == "front" and slot.failures >= FRONT_FAILURES:
            self._shutdown.fail(f"fronts die again and again ({how}); the lines above say why")

    def _no_engine_starts(self) -> bool:
        """Whether engines die young in all slots: a lost GPU is no reason not to use others."""
        slots = [slot for slot in self._parts.slots if slot.role == "engine" and not slot.spare]
        return all(slot.failures >= ENGINE_FAILURES for slot in slots)

    async def _watch(self) -> None:
        """Kill children that are silent."""
        config = self._config.engines
        every = min(config.heartbeat_s, config.hung_s / 4)
        while True:
            begun = time.monotonic()
            await trio.sleep(every)
            now = time.monotonic()
            self._control.receive()
            late = now - begun - every
            for child in self._roster.children:
                if late > config.hung_s / 4:  # it was this process that stood still
                    child.last_heard_at = max(child.last_heard_at, now)
                if child.ready_at is None:
                    child.start.did_something(child.last_heard_at)
                    reason = child.start.look(used_by(child.pid), now)
                    if reason is not None:
                        child.kill(reason)
                    continue
                waited = waited_s(child.pid)
                if child.silence.of(child.last_heard_at, waited, now) > config.hung_s:
                    child.kill(f"hung, silent for {now - child.last_heard_at:.1f} s")

    def _tell_uses(self, source: Child, accounts: Collection[str]) -> None:
        """Tell all others what accounts use, since that has changed with one of them."""
        for child in (*self._roster.gateways, *self._roster.fronts):
            if child is not source:
                self._send_uses(child, accounts)

    def _send_uses(self, child: Child, accounts: Collection[str] | None) -> None:
        for part in Uses.parts(self._ledger.others(child.name, accounts)):
            self._control.send(child, part)

    async def _keep_spoken(self) -> None:
        while True:
            await trio.sleep(KEEP_SPOKEN_S)
            self._write_spoken()

    def _write_spoken(self) -> None:
        """Where seconds of a day are counted, keep them."""
        spoken = self._ledger.spoken()
        if self._parts.spoken is not None and spoken and spoken != self._spoken:
            self._spoken = spoken
            keep(self._parts.spoken, spoken)

    async def _renew_certificate(self) -> None:
        """Read it again; where that cannot be used, all stays as it was."""
        spawner = self._parts.spawner
        if spawner.certificate is None:
            return
        try:
            spawner.certificate = await trio.to_thread.run_sync(
                read_certificate, self._config.listen, abandon_on_cancel=True
            )
        except ConfigError as error:
            log.error("the certificate is kept as it was", reason=str(error))
            return
        log.info("the certificate was read again")
        for child in (*self._roster.gateways, *self._roster.fronts):
            self._send_certificate(child)

    def _send_certificate(self, child: Child) -> None:
        certificate = self._parts.spawner.certificate
        if certificate is not None:
            self._control.send(child, NewCertificate(certificate=certificate))

    # ------------------------------------------------------------ messages
    def _on_message(self, child: Child, message: AnyMessage) -> None:
        child.last_heard_at = time.monotonic()
        if isinstance(message, Heartbeat):
            child.load, child.speed = message.load, message.speed
            child.encodes_per_s = message.load.encodes_per_s or child.encodes_per_s
        elif isinstance(message, FrontHeartbeat):
            try:
                child.front_load = read_load(message.load)
            except (msgspec.MsgspecError, UnicodeError):
                self._control.unreadable_loads += 1
            self._rollout.on_news()
        elif isinstance(message, Uses):
            self._ledger.told(child.name, message.of)
            self._tell_uses(child, message.of)
        elif isinstance(message, GatewayHeartbeat):
            try:
                child.gateway_load = read_gateway_load(message.load)
            except (msgspec.MsgspecError, UnicodeError):
                self._control.unreadable_loads += 1
        elif isinstance(message, Hello):
            self._on_hello(child, message)
        elif isinstance(message, Ready):
            child.maker, child.encodes_per_s = message.maker, message.encodes_per_s
            self._on_child_ready(child, message.capacity)
        elif isinstance(message, WantAvatar):
            if self._loader.want(message.name):
                self._nursery.start_soon(self._loader.open_wanted, message.name)
        elif isinstance(message, AvatarState):
            self._on_avatar_state(child, message)
        elif isinstance(message, Bye):
            self._on_bye(child, message.reason)

    def _on_hello(self, child: Child, hello: Hello) -> None:
        child.greeted = True
        if hello.version != VERSION:
            log.error("speaks another version", child=child.name, its=hello.version)
            self._control.send(child, Stop())
            return
        child.device = hello.device or child.device
        if child.role == "front":
            self._control.publish_engines()
            self._control.publish_status()
        elif child.role == "engine":
            self._loader.load_missing(child)
        if child.role != "engine":
            self._send_uses(child, None)
            self._send_certificate(child)  # it may have been read again since this one was born
            if self._roster.state == "draining":
                self._control.send(child, Drain())
        self._rings.on_children_changed()

    def _on_child_ready(self, child: Child, capacity: float) -> None:
        if child.ready_at is not None:
            return
        child.ready_at = child.last_heard_at
        if child.role == "engine":
            child.avatars |= {key for key in child.initial_avatars if key not in child.load_errors}
            child.loading -= child.initial_avatars
            self._loader.unload_forgotten(child)
            self._roster.enrol(child, capacity)
            self._control.publish_engines()
        else:
            child.state = "ready"
        log.info(
            "ready",
            child=child.name,
            after_s=round(child.ready_at - child.started_at, 3),
            **({"frames_per_s": round(capacity, 1)} if capacity else {}),
        )
        self._rings.on_children_changed()
        self._on_news()

    def _on_bye(self, child: Child, reason: str) -> None:
        child.farewell = reason
        worked, child.state = child.state == "ready", "draining"
        if child.role == "engine":
            if worked:
                self._roster.promote_spare(child)
            self._control.publish_engines()
        self._on_news()

    def _on_avatar_state(self, engine: Child, state: AvatarState) -> None:
        default = state.name == self._catalogue.default_key
        self._loader.on_state(engine, state)
        self._rollout.on_news()
        if state.error and default and not self._serving.is_set():
            self._shutdown.fail(f"avatar {state.name!r} cannot be used: {state.error}")

    def _on_change_avatar(self, asker: str, request: ChangeAvatar) -> None:
        self._nursery.start_soon(self._rollout.answer, asker, request)

    def _on_rings_failed(self, reason: str) -> None:
        if not self._serving.is_set():
            self._shutdown.fail(reason)

    def _on_news(self) -> None:
        """Something about children has changed."""
        self._changes.notify()
        self._rollout.on_news()
        ready = self._roster.can_serve and self._rings.any_delivered
        if self._roster.state == "starting" and ready:
            self._roster.state = "serving"
            self._serving.set()
            self._parts.notifier.ready()
            facts = self._parts.facts
            after = round(time.monotonic() - facts.started_at, 3)
            ports = ",".join(map(str, facts.ports))
            more = {
                f"{kind}_ports": ",".join(map(str, numbers))
                for kind, numbers in facts.gateway_ports.items()
            }
            log.info("serving", ports=ports, http_port=facts.http_port, **more, after_s=after)
            self._parts.on_ready()

    # ------------------------------------------------------------ figures
    async def _report(self) -> None:
        """Tell fronts and the service manager how things are, every second."""
        while True:
            await trio.sleep(REPORT_S)
            self._control.rates.sample(self._roster.fronts)
            self._loader.load_where_needed()
            self._ledger.sweep()
            self._control.publish_engines()
            status = self._control.publish_status()
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


async def supervise(parts: ServerParts) -> int:
    """Open the control socket and run the server; see ``Supervisor.run``."""
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        with contextlib.closing(Hub.bind(context, parts.spawner.folder)) as hub:
            return await Supervisor(parts, hub).run()
    finally:
        context.destroy(linger=100)
