# SPDX-License-Identifier: Apache-2.0
"""The gRPC server: its ports and limits, health and reflection."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what strangers do to a port is no news

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lipsync_fast.errors import FrontError, LipsyncError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.fronts import Fronts
from lipsync_fast.gateway.greeting import Greeting
from lipsync_fast.gateway.questions import Question, encode
from lipsync_fast.gateway.rpc.calls import Shares
from lipsync_fast.gateway.rpc.messages import SERVICE
from lipsync_fast.gateway.rpc.service import Service
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.ipc.status import GatewayLoad
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.gateway")
MOST_MESSAGE = 50 << 20
MOST_CALLS = 256
"""At once; more are told RESOURCE_EXHAUSTED. Each may hold a message of that size."""
PROBE_S, PROBE_SOON_S = 2.0, 0.1
"""How often a front is asked whether it is there: while it is, and while it is not."""
OPTIONS = [
    ("grpc.max_receive_message_length", MOST_MESSAGE),
    ("grpc.max_send_message_length", MOST_MESSAGE),
    ("grpc.so_reuseport", 1),  # the supervisor keeps the port
    # Who vanishes is noticed within 10 s.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A client may say as often that it is there.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.max_connection_idle_ms", 600_000),
]


class GrpcAdapter:
    """The old server's gRPC; see ``adapters.Adapter``."""

    name = "grpc"

    def __init__(
        self,
        spec: GatewaySpec,
        fronts: Fronts,
        load: GatewayLoad,
        greeting: Greeting | None = None,
    ) -> None:
        began = time.monotonic() - spec.uptime_s
        self._spec, self._fronts, self._greeting = spec, fronts, greeting
        shares = Shares(MOST_CALLS * 3 // 4, spec.config.listen.proxies)
        counts = Counts(load, self.name)
        self._service = Service(fronts, counts, shares, lambda: time.monotonic() - began)
        self._health = health.aio.HealthServicer()
        self._server: Any = None
        self._probe: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            LipsyncError: a port cannot be had.
        """
        handshake = int(self._spec.config.limits.handshake_s * 1e3)
        options = [*OPTIONS, ("grpc.server_handshake_timeout_ms", handshake)]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MOST_CALLS)
        server.add_generic_rpc_handlers((self._service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        known = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(known, server)
        host = self._spec.host
        place = f"[{host}]" if ":" in host else host
        greeting = self._greeting
        credentials = greeting.grpc_credentials() if greeting is not None else None
        for port in self._spec.grpc_ports:
            try:
                where = f"{place}:{port}"
                if credentials is None:
                    taken = server.add_insecure_port(where)
                else:
                    taken = server.add_secure_port(where, credentials)
            except RuntimeError as error:
                raise LipsyncError(f"gRPC cannot listen on {place}:{port}: {error}") from None
            if taken != port:
                raise LipsyncError(f"gRPC cannot listen on {place}:{port}")
        await self._say(False)
        self._probe = asyncio.create_task(self._keep_probing())
        await server.start()
        self._server = server

    async def drain(self, seconds: float) -> None:
        """Take no more calls; cut off what has not ended after so many seconds."""
        if self._probe is not None:
            self._probe.cancel()
            await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(seconds)

    async def _keep_probing(self) -> None:
        """Tell who asks for the server's health whether a front is there."""
        question = encode(Question(type="test_binary"))
        while True:
            there = False
            with suppress(FrontError):
                there = bool(await self._fronts.ask(None, question))
            await self._say(there)
            await asyncio.sleep(PROBE_S if there else PROBE_SOON_S)

    async def _say(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)
