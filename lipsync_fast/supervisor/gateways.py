# SPDX-License-Identifier: Apache-2.0
"""What the gateway needs before it can be started: its ports, and a way to the fronts.

Fronts listen for it on a port of their own on this machine's loopback address. Who shows the secret
there is the gateway, and acts for its clients: it says whose each connection is, so that shares,
tokens and guesses are those clients'. The secret is made anew by every server, and handed to
children in their tasks: it stands in no command line, environment or file.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from lipsync_fast.canonical import listening_address
from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import ServerError
from lipsync_fast.extras import how_to_get
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.supervisor.ports import INNER_HOST, BoundPort, bind_inner, keep_port

NEEDED = "grpc", "grpc_health", "grpc_reflection", "google.protobuf"
"""Modules of the extra ``grpc``."""


@dataclass(frozen=True)
class GatewayPlan:
    """A gateway that is to be.

    Attributes:
        inner: where fronts listen for it; secret: what it shows there.
        grpc: ports that are kept for it.
        started_at: of the server, CLOCK_MONOTONIC, s.
    """

    inner: BoundPort
    grpc: list[BoundPort]
    started_at: float
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def close(self) -> None:
        """Close this process's copies of sockets."""
        for port in (self.inner, *self.grpc):
            port.close()

    def spec(self, name: str, folder: Path, rings_fd: int, config: ServeConfig) -> GatewaySpec:
        """The task of a process."""
        return GatewaySpec(
            name=name,
            folder=str(folder),
            rings_fd=rings_fd,
            url=f"ws://{INNER_HOST}:{self.inner.port}",
            secret=self.secret,
            host=listening_address(config.listen.host)[1],
            grpc_ports=[port.port for port in self.grpc],
            config=config,
            uptime_s=time.monotonic() - self.started_at,
        )


def plan_gateway(config: ServeConfig, started_at: float) -> GatewayPlan | None:
    """Take the ports of the gateway; None where none is wanted.

    Raises:
        ServerError: the extra is not installed, or a port cannot be had.
    """
    wanted = config.listen.grpc_ports
    if not wanted:
        return None
    if not all(map(_is_there, NEEDED)):
        raise ServerError(f"listen.grpc_ports needs more than is installed: {how_to_get('grpc')}")
    ports: list[BoundPort] = []
    try:
        for port in wanted:
            kept = keep_port(config.listen.host, port)
            ports.append(kept)
        inner = bind_inner(config.fronts)
    except BaseException:
        for each in ports:
            each.close()
        raise
    return GatewayPlan(inner, ports, started_at)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it is in is not there
        return False
