# SPDX-License-Identifier: Apache-2.0
"""The gateway process, started by the supervisor (``ipc.birth``).

    supervisor ─► control link: Drain, Stop            ─► adapters
    adapters   ─► heartbeats with what they have done  ─► supervisor

It leaves when told to (Stop), when it has drained, or when the supervisor has gone. Its heartbeats
come from the loop in which all clients are served: a loop that stands still sends none.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq

from lipsync_fast.errors import LipsyncError, spent
from lipsync_fast.gateway.adapters import Adapter
from lipsync_fast.gateway.fronts import Fronts
from lipsync_fast.gateway.greeting import Greeting
from lipsync_fast.gateway.visitors import Visitors
from lipsync_fast.ipc.children import GatewaySpec, read_spec
from lipsync_fast.ipc.control import (
    Bye,
    Drain,
    GatewayHeartbeat,
    Hello,
    NewCertificate,
    Ready,
    Stop,
    Uses,
)
from lipsync_fast.ipc.control_socket import Link
from lipsync_fast.ipc.status import GatewayLoad
from lipsync_fast.logs import get_logger, setup_logs

log = get_logger("lipsync.gateway")


def adapters(
    spec: GatewaySpec,
    fronts: Fronts,
    load: GatewayLoad,
    greeting: Greeting | None,
    visitors: Visitors,
) -> list[Adapter]:
    """The protocols that are wanted; what they need is imported here."""
    made: list[Adapter] = []
    if spec.grpc_ports:
        from lipsync_fast.gateway.rpc.server import GrpcAdapter

        made.append(GrpcAdapter(spec, fronts, load, greeting))
    if spec.webrtc_ports:
        from lipsync_fast.gateway.webrtc.server import WebRtcAdapter

        made.append(WebRtcAdapter(spec, fronts, load, greeting, visitors))
    if spec.livekit_ports:
        from lipsync_fast.gateway.livekit.server import LiveKitAdapter

        made.append(LiveKitAdapter(spec, fronts, load, greeting, visitors))
    return made


class Gateway:
    """The process's parts, and what the supervisor says to them."""

    def __init__(self, spec: GatewaySpec, link: Link) -> None:
        self._spec, self._link, self._load = spec, link, GatewayLoad()
        self._fronts = Fronts(spec.url, spec.secret)
        certificate = spec.certificate
        self._greeting = None if certificate is None else Greeting(certificate)
        self._visitors = Visitors(spec)
        self._adapters = adapters(spec, self._fronts, self._load, self._greeting, self._visitors)
        self._draining, self._stop = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        self._link.send(Hello(role="gateway", pid=os.getpid()))
        loop.add_reader(self._link.fd, self._obey)
        loop.add_reader(self._spec.rings_fd, self._stop.set)  # nothing comes there but its end
        beats = loop.create_task(self._beat())
        try:
            for adapter in self._adapters:
                await adapter.start()
            self._link.send(Ready())
            self._obey()
            await _first(self._draining, self._stop)
            if not self._stop.is_set():
                await self._drain()
        finally:
            beats.cancel()
            loop.remove_reader(self._link.fd)
            loop.remove_reader(self._spec.rings_fd)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.gather(*(adapter.drain(0) for adapter in self._adapters))
            await self._fronts.close()
            self._visitors.close()

    async def _drain(self) -> None:
        seconds = self._spec.config.drain_seconds
        log.info("draining", calls=sum(self._load.calls.values()))
        ends = [asyncio.create_task(each.drain(seconds)) for each in self._adapters]
        stopped = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(_all(ends))
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        self._link.send(Bye())

    def _obey(self) -> None:
        """Take what the supervisor has said: all of it, since news is told of once."""
        for message in self._link.received():
            if isinstance(message, Drain):
                self._draining.set()
            elif isinstance(message, NewCertificate) and self._greeting is not None:
                self._greeting.renew(message.certificate)
            elif isinstance(message, Uses):
                self._visitors.accounts.apply_update(message.of)
            elif isinstance(message, Stop):
                self._stop.set()

    async def _beat(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        while True:
            self._load.links = self._fronts.links
            self._link.send(GatewayHeartbeat(load=msgspec.Raw(encoder.encode(self._load))))
            for part in Uses.parts(self._visitors.accounts.changes()):
                self._link.send(part)
            self._obey()  # sending may have swallowed the news
            await asyncio.sleep(self._spec.config.engines.heartbeat_s)


async def _first(*events: asyncio.Event) -> None:
    """Wait for any of them."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


async def _run(spec: GatewaySpec, link: Link) -> int:
    try:
        await Gateway(spec, link).run()
    except Exception as error:
        reason = str(error) if isinstance(error, LipsyncError) else spent(error)
        if reason is None:
            raise
        log.error("cannot serve", reason=reason)
        link.send(Bye(reason=reason))
        return 1
    return 0


def main() -> None:
    """Read the task, serve, and exit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides
    spec = read_spec(GatewaySpec)
    setup_logs(spec.config.log, spec.name)
    context = zmq.Context[zmq.Socket[bytes]]()
    link = Link.connect(context, Path(spec.folder), spec.name)
    try:
        status = asyncio.run(_run(spec, link))
    finally:
        link.close()
        context.term()
    sys.exit(status)


if __name__ == "__main__":
    main()
