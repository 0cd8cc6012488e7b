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
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from lipsync_fast.canonical import listening_address
from lipsync_fast.certificates import Certificate
from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import ServerError
from lipsync_fast.extras import how_to_get
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.supervisor.ports import INNER_HOST, BoundPort, Kept, bind_inner, keep_port

NEEDED: Mapping[Kept, tuple[str, ...]] = {
    "grpc": ("grpc", "grpc_health", "grpc_reflection", "google.protobuf"),
    "webrtc": ("aiortc", "aioice", "aiohttp"),
    "livekit": ("livekit.plugins.lipsync_fast", "aiohttp"),
}
"""Modules that protocols need."""
HOW: Mapping[Kept, str] = {"livekit": "pip install ./client ./integrations/livekit in a checkout"}
"""What brings them, where it is not the extra of the same name."""


@dataclass(frozen=True)
class GatewayPlan:
    """A gateway that is to be.

    Attributes:
        inner: where fronts listen for it; secret: what it shows there.
        kept: ports for it, by protocol.
        started_at: of the server, CLOCK_MONOTONIC, s.
    """

    inner: BoundPort
    kept: dict[Kept, list[BoundPort]]
    started_at: float
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def close(self) -> None:
        """Close this process's copies of sockets."""
        for port in (self.inner, *self.bound):
            port.close()

    @property
    def bound(self) -> list[BoundPort]:
        """All that are kept for it."""
        return [port for ports in self.kept.values() for port in ports]

    @property
    def ports(self) -> dict[str, list[int]]:
        """Their numbers, by protocol."""
        return {kind: [port.port for port in ports] for kind, ports in self.kept.items()}

    def spec(
        self,
        name: str,
        folder: Path,
        rings_fd: int,
        config: ServeConfig,
        certificate: Certificate | None = None,
    ) -> GatewaySpec:
        """The task of a process."""
        return GatewaySpec(
            name=name,
            folder=str(folder),
            rings_fd=rings_fd,
            url=f"ws://{INNER_HOST}:{self.inner.port}",
            secret=self.secret,
            host=listening_address(config.listen.host)[1],
            grpc_ports=self.ports.get("grpc", []),
            webrtc_ports=self.ports.get("webrtc", []),
            livekit_ports=self.ports.get("livekit", []),
            config=config,
            uptime_s=time.monotonic() - self.started_at,
            certificate=certificate,
        )


def plan_gateway(config: ServeConfig, started_at: float) -> GatewayPlan | None:
    """Take the ports of the gateway; None where none is wanted.

    Raises:
        ServerError: the extra is not installed, or a port cannot be had.
    """
    listen = config.listen
    asked: dict[Kept, tuple[int, ...]] = {
        "grpc": listen.grpc_ports,
        "webrtc": listen.webrtc_ports,
        "livekit": listen.livekit_ports,
    }
    wanted = {kind: numbers for kind, numbers in asked.items() if numbers}
    if not wanted:
        return None
    for kind in wanted:
        if not all(map(_is_there, NEEDED[kind])):
            how = HOW.get(kind) or how_to_get(kind)
            raise ServerError(f"listen.{kind}_ports needs more than is installed: {how}")
    if listen.webrtc_ports and config.webrtc.pages and not Path(config.webrtc.pages).is_dir():
        raise ServerError(f"webrtc.pages: there is no folder {config.webrtc.pages!r}")
    kept: dict[Kept, list[BoundPort]] = {kind: [] for kind in wanted}
    try:
        for kind, numbers in wanted.items():
            for number in numbers:
                port = keep_port(listen.host, number, kind)
                kept[kind].append(port)
        inner = bind_inner(config.fronts)
    except BaseException:
        for ports in kept.values():
            for each in ports:
                each.close()
        raise
    return GatewayPlan(inner, kept, started_at)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it is in is not there
        return False
