# SPDX-License-Identifier: Apache-2.0
"""How the processes of one server are started: their slots, their names, their tasks."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from lipsync_fast.certificates import Certificate
from lipsync_fast.config import ServeConfig
from lipsync_fast.ipc.children import EngineSpec, FrontSpec, GatewaySpec, Listener
from lipsync_fast.supervisor.avatar_catalogue import AvatarCatalogue
from lipsync_fast.supervisor.children import Child, ChildSlot, Command, spawn
from lipsync_fast.supervisor.devices import DevicePlan
from lipsync_fast.supervisor.gateways import GatewayPlan
from lipsync_fast.supervisor.gpus import Gpu
from lipsync_fast.supervisor.ports import BoundPort

ROLES = "front", "engine", "gateway"


def child_slots(
    plan: DevicePlan, ports: list[BoundPort], fronts: int, gateway: GatewayPlan | None = None
) -> list[ChildSlot]:
    """A slot for each child that the server is to have: fronts, engines, spares, a gateway."""
    if gateway is not None:
        ports = [*ports, gateway.inner]
    slots = [
        ChildSlot(
            "front",
            number,
            listeners=[
                Listener(fd=p.sockets[number % len(p.sockets)].fileno(), kind=p.kind, port=p.port)
                for p in ports
                if p.kind != "grpc" and p.kind != "webrtc" and p.kind != "livekit"
            ],
        )
        for number in range(fronts)
    ]
    engines = [(d, False) for d in plan.devices] + [(d, True) for d in plan.spares]
    for number, (device, spare) in enumerate(engines):
        gpu = plan.gpus.get(device)
        near = gpu.processors if gpu is not None else ()
        slots.append(ChildSlot("engine", number, device, spare, near))
    if gateway is not None:
        slots.append(ChildSlot("gateway", 0))
    return slots


@dataclass
class Spawner:
    """Starts children.

    Attributes:
        folder: of the control socket.
        threads: of a CPU engine.
        catalogue: what engines load before they are ready.
        command: what a child of a role is run as.
        gpus: that engines run on, by device.
        environ: of engines on GPUs, beside what they have from here.
        gateway: what it needs, where there is to be one.
        tickets_fd, tickets_secret: what fronts share of tickets (``tokens.tickets``).
        certificate: of those that listen, who speak TLS then; the newest one that can be used.
    """

    config: ServeConfig
    folder: Path
    threads: int
    catalogue: AvatarCatalogue
    command: Command
    gpus: dict[str, Gpu] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    gateway: GatewayPlan | None = None
    certificate: Certificate | None = None
    tickets_fd: int = -1
    tickets_secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    _numbers: dict[str, itertools.count[int]] = field(
        default_factory=lambda: {role: itertools.count(1) for role in ROLES}
    )

    def start(self, slot: ChildSlot, capacity: float = 0.0, modest: bool = False) -> Child:
        """Fill a slot with a new process.

        Args:
            slot: what it is to be.
            capacity: of an engine on its device, where it is known: then it need not take all
                threads from others' work to measure it.
            modest: enough engines work.

        Raises:
            OSError: no process can be started.
        """
        name = f"{slot.role}-{next(self._numbers[slot.role])}"

        def spec(rings_fd: int) -> EngineSpec | FrontSpec | GatewaySpec:
            if slot.role == "gateway":
                assert self.gateway is not None
                return self.gateway.spec(name, self.folder, rings_fd, self.config, self.certificate)
            if slot.role == "front":
                return FrontSpec(
                    name=name,
                    folder=str(self.folder),
                    rings_fd=rings_fd,
                    listeners=slot.listeners,
                    config=self.config,
                    secret=self.gateway.secret if self.gateway is not None else "",
                    tickets_secret=self.tickets_secret,
                    tickets_fd=self.tickets_fd,
                    certificate=self.certificate,
                )
            return EngineSpec(
                name=name,
                folder=str(self.folder),
                rings_fd=rings_fd,
                device=slot.device,
                threads=self.threads if slot.device == "cpu" else None,
                memory_mb=self.config.engines.memory_mb,
                kernels=self.config.engines.kernels,
                precision=self.config.engines.precision,
                processors=list(slot.processors),
                avatars=self.catalogue.initial_avatars(slot),
                require_signed=self.config.avatars.require_signed,
                heartbeat_s=self.config.engines.heartbeat_s,
                capacity=capacity,
                modest=modest,
                utterances=self.config.utterances,
                log=self.config.log,
            )

        gpu = self.gpus.get(slot.device)
        environ = {**self.environ, **gpu.environ()} if gpu is not None else {}
        fds = [self.tickets_fd] if slot.role == "front" and self.tickets_fd >= 0 else []
        return spawn(slot, name, self.command(slot.role), spec, environ, fds)
