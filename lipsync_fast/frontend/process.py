# SPDX-License-Identifier: Apache-2.0
"""The front process, started by the supervisor (``ipc.birth``).

    supervisor ─► control link, ring socket ─► pool, services
    clients ⇄ stream ports, HTTP port ─► connections ─► lipsync.v1, the old protocols

It leaves when told to (Stop), when it has drained, or when the supervisor has gone.
"""

from __future__ import annotations

import os
import signal
import socket as sockets
import sys

import msgspec
import trio
import zmq

from lipsync_fast.audit import Audit
from lipsync_fast.errors import ControlError, spent
from lipsync_fast.frontend.access.secure import Security
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.frontend.legacy.service import LegacyService
from lipsync_fast.frontend.listen.connections import Connections
from lipsync_fast.frontend.listen.stream import serve_stream
from lipsync_fast.frontend.services import Services
from lipsync_fast.ipc.children import FrontSpec, read_spec
from lipsync_fast.ipc.control import (
    AnyMessage,
    AvatarChanged,
    Bye,
    Drain,
    Engines,
    FrontHeartbeat,
    Hello,
    NewCertificate,
    PeerGone,
    Ready,
    StatusReply,
    Stop,
    Uses,
)
from lipsync_fast.ipc.control_socket import Link
from lipsync_fast.ipc.offers import RingSocket, RingsOffered
from lipsync_fast.ipc.status import read_status
from lipsync_fast.logs import get_logger, setup_logs
from lipsync_fast.signals import until
from lipsync_fast.tokens.tickets import Tickets
from lipsync_fast.tracing import Tracing, open_tracing

log = get_logger("lipsync.front")
PLAIN = Security(None, lambda: None)
LATENCIES_S = 1.0
"""How often the percentiles of how long frames take are made."""
_encoder = msgspec.msgpack.Encoder()


class Front:
    """The process's parts and what the supervisor says to them."""

    def __init__(
        self,
        spec: FrontSpec,
        link: Link,
        rings: RingSocket,
        tracing: Tracing | None,
        nursery: trio.Nursery,
    ) -> None:
        self.spec, self.link, self.rings, self._nursery = spec, link, rings, nursery
        self.pool = EnginePool(nursery)
        audit = Audit(spec.config.log.audit, spec.name)
        self.services = Services.of(
            spec.config, self.pool, self.send, _tickets(spec), audit, tracing
        )
        self.legacy = LegacyService(self.services)
        self.connections = Connections(self.services, self.legacy)
        statistics = self.services.statistics
        self.security = Security(spec.certificate, lambda: statistics.count_refused("tls"))
        self.stop = trio.Event()

    # ------------------------------------------------------------ control
    def send(self, message: AnyMessage) -> None:
        """Send to the supervisor."""
        self.link.send(message)

    async def listen(self) -> None:
        """Obey the supervisor."""
        while True:
            for message in self.link.received():
                self._obey(message)
            await self.link.wait()

    def _obey(self, message: AnyMessage) -> None:
        services = self.services
        if isinstance(message, Engines):
            known = services.avatars.catalogue.number
            services.apply_update(message)
            if services.avatars.catalogue.number != known:
                self._send_load()  # somebody waits until this is known here
        elif isinstance(message, AvatarChanged):
            services.avatar_changes.on_changed(message)
        elif isinstance(message, PeerGone):
            self.pool.gone(message.peer)
        elif isinstance(message, StatusReply):
            try:
                services.statistics.server = read_status(message.status)
            except (msgspec.MsgspecError, UnicodeError) as error:
                log.error("status of another version", reason=str(error))
        elif isinstance(message, Drain):
            if not services.admission.draining.is_set():
                log.info("draining", sessions=services.statistics.load.sessions)
                services.admission.draining.set()
                self._nursery.start_soon(self._leave_when_empty)
        elif isinstance(message, NewCertificate):
            self.security.renew(message.certificate)
        elif isinstance(message, Uses):
            services.accounts.apply_update(message.of)
        elif isinstance(message, Stop):
            self.stop.set()

    async def take_rings(self) -> None:
        """Take the rings of new engines; leave when the supervisor has gone."""
        while True:
            await trio.lowlevel.wait_readable(self.rings.fileno())
            try:
                offer = self.rings.accept()
            except ControlError as error:
                log.error("leaving", reason=str(error))
                self.stop.set()
                return
            if isinstance(offer, RingsOffered):
                self.pool.attach(offer.peer, offer.jobs, offer.answers)

    async def beat(self) -> None:
        """Say that this process lives, and how it does."""
        statistics, next_percentiles = self.services.statistics, 0.0
        while True:
            now = trio.current_time()
            if now >= next_percentiles:  # they cost more than all else that is sent
                load, latencies = statistics.load, statistics.latencies
                load.latency_ms = latencies.percentiles()
                load.latency_counts = latencies.ever.counts
                load.latency_sum_ms = latencies.ever.sum_s * 1e3
                load.first_picture = statistics.first_picture.durations
                load.session_time = statistics.session_time.durations
                load.exemplars = {
                    "latency": latencies.ever.exemplars,
                    "first_picture": statistics.first_picture.exemplars,
                }
                next_percentiles = now + LATENCIES_S
            self._send_load()
            await trio.sleep(self.spec.config.engines.heartbeat_s)

    def _send_load(self) -> None:
        load = _encoder.encode(self.services.load_now())
        self.send(FrontHeartbeat(load=msgspec.Raw(load)))
        for part in Uses.parts(self.services.accounts.changes()):
            self.send(part)

    async def _leave_when_empty(self) -> None:
        await until(lambda: not self.services.statistics.load.connections)
        self.send(Bye())
        self.stop.set()

    # ------------------------------------------------------------ life
    async def run(self) -> None:
        """Serve until told to stop."""
        nursery = self._nursery
        self.send(Hello(role="front", pid=os.getpid()))
        nursery.start_soon(self.listen)
        nursery.start_soon(self.take_rings)
        nursery.start_soon(self.beat)
        nursery.start_soon(self.services.timer.run)
        if self.spec.config.access.api_keys:
            nursery.start_soon(self.connections.end_revoked)
        nursery.start_soon(self.services.idle_rate.run)
        if self.spec.config.live.half_rate:
            nursery.start_soon(self.services.speech_rate.run)
        for listener in self.spec.listeners:
            if listener.kind == "http":
                from lipsync_fast.frontend.http.serving import serve_http

                await nursery.start(
                    serve_http,
                    listener.fd,
                    self.services,
                    self.security,
                    self.connections.serve,
                    self.legacy.video,
                    self.stop,
                )
            else:
                socket = sockets.socket(fileno=listener.fd)
                inner = listener.kind == "inner"  # nobody can listen between: it stays plain
                await nursery.start(
                    serve_stream,
                    socket,
                    self.services,
                    self.connections,
                    PLAIN if inner else self.security,
                    self.spec.secret if inner else None,
                )
        self.send(Ready())
        await self.stop.wait()
        nursery.cancel_scope.cancel()


def _tickets(spec: FrontSpec) -> Tickets | None:
    """Those that all fronts of the server share."""
    if spec.tickets_fd < 0:
        return None
    return Tickets(bytes.fromhex(spec.tickets_secret), spec.tickets_fd)


async def _run(spec: FrontSpec, link: Link, rings: RingSocket, tracing: Tracing | None) -> None:
    async with trio.open_nursery() as nursery:
        front = Front(spec, link, rings, tracing, nursery)
        try:
            await front.run()
        finally:
            front.services.close()


def main() -> None:
    """Read the task, serve, and exit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides
    spec = read_spec(FrontSpec)
    setup_logs(spec.config.log, spec.name)
    context = zmq.Context[zmq.Socket[bytes]]()
    socket = sockets.socket(fileno=spec.rings_fd)
    socket.setblocking(False)
    from pathlib import Path

    link = Link.connect(context, Path(spec.folder), spec.name)
    tracing: Tracing | None = None
    try:
        tracing = open_tracing(spec.config.tracing, spec.name)
        trio.run(_run, spec, link, RingSocket(socket), tracing)
    except Exception as error:
        reason = spent(error)
        if reason is None:
            raise
        log.error("leaving", reason=reason)
        link.send(Bye(reason=reason))
        sys.exit(1)
    finally:
        if tracing is not None:
            tracing.close()  # all sessions have ended
        link.close()
        context.term()
    sys.exit(0)


if __name__ == "__main__":
    main()
