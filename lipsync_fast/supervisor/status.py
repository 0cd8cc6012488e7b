# SPDX-License-Identifier: Apache-2.0
"""What the server says of itself: to fronts (who works, how many may speak), and to people."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lipsync_fast.config import Live, ServeConfig
from lipsync_fast.ipc.control import EngineInfo
from lipsync_fast.ipc.status import (
    AvatarStatus,
    EngineStatus,
    FrontStatus,
    GatewayStatus,
    ServerStatus,
)
from lipsync_fast.machine import OWN_FROM, processors
from lipsync_fast.supervisor.avatar_catalogue import AvatarCatalogue
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.roster import ServerState
from lipsync_fast.supervisor.versions import Version
from lipsync_fast.timing import FPS
from lipsync_fast.version import __version__

FRONT_S = 0.001
"""Processor time that a front needs for a frame of one of few sessions (bench/micro/front.py)."""
RATE_S = 3.0
"""Frames a second are counted over so long."""
USABLE_S = 0.9
"""What the machine leaves the server is looked at once for each report: they are a second apart."""


class Usable:
    """How many processors the server may use, as of the last second.

    Control groups' limits may change while it runs. To read them takes a dozen files, and all that
    is published asks.

    Args:
        count: as ``machine.processors``.
        clock: seconds.
    """

    def __init__(
        self,
        count: Callable[[], int] = processors,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._clock = count, clock
        self._known, self._until = 0, -math.inf

    @property
    def processors(self) -> int:
        """So many."""
        now = self._clock()
        if now >= self._until:
            self._known, self._until = self._count(), now + USABLE_S
        return self._known


def most_speakers(config: ServeConfig, engines: list[Child], usable: Usable) -> int:
    """How many sessions may speak at once: configured, or what the working engines can make."""
    ready = [engine for engine in engines if engine.state == "ready"]
    capacity = sum(engine.capacity_now for engine in ready)
    if config.live.speakers or any(engine.device != "cpu" for engine in ready):
        return speakers_for(config.live, capacity, None)
    shared = usable.processors if usable.processors < OWN_FROM else None
    return speakers_for(config.live, capacity, shared)


def speakers_for(config: Live, capacity: float, shared: int | None) -> int:
    """The same from numbers.

    Args:
        capacity: frames a second of all engines.
        shared: processors that fronts and engines both use; None where they do not.
    """
    if config.speakers:
        return config.speakers
    if not capacity:
        return 1
    each = FPS / capacity
    if shared is not None:
        each += FPS * FRONT_S / shared
    return max(1, math.floor(config.headroom / each))


def engine_infos(engines: list[Child], catalogue: AvatarCatalogue) -> list[EngineInfo]:
    """All engines that live, as fronts know them."""
    return [
        EngineInfo(
            name=engine.name,
            device=engine.device,
            active=engine.state == "ready",
            capacity=engine.capacity_now,
            avatars=sorted(engine.avatars) if engine.is_working else [],
            errors=_load_errors(engine, catalogue),
            frames_per_s=engine.load.frames_per_s,
            maker=engine.maker,
            encodes_per_s=engine.encodes_per_s,
        )
        for engine in engines
    ]


def _load_errors(engine: Child, catalogue: AvatarCatalogue) -> dict[str, str]:
    """Why an engine has not got avatars, with the reasons."""
    both = catalogue.errors.current() | engine.load_errors.current()
    return {name: reason for name, reason in both.items() if name not in engine.avatars}


@dataclass
class FrameRates:
    """Frames a second of each front, from the counts of its heartbeats."""

    _samples: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def sample(self, fronts: list[Child]) -> None:
        """Note the counts; once a second."""
        now = time.monotonic()
        self._samples = {f.name: self._samples.get(f.name, deque()) for f in fronts}
        for front in fronts:
            samples = self._samples[front.name]
            samples.append((now, front.front_load.frames))
            while len(samples) > 2 and now - samples[1][0] >= RATE_S:
                samples.popleft()

    def of(self, front: Child) -> float:
        """Frames a second that a front sends."""
        samples = self._samples.get(front.name)
        if not samples or len(samples) < 2:
            return 0.0
        (begun, before), (now, after) = samples[0], samples[-1]
        return max(0.0, (after - before) / (now - begun)) if now > begun else 0.0


@dataclass(frozen=True)
class ServerFacts:
    """What does not change while a server runs.

    Attributes:
        ports: of the stream protocols; gateway_ports: of others, by protocol.
        started_at: CLOCK_MONOTONIC, s.
    """

    config: ServeConfig
    ports: list[int]
    http_port: int
    started_at: float
    gateway_ports: dict[str, list[int]] = field(default_factory=dict)


def server_status(
    facts: ServerFacts,
    state: ServerState,
    children: list[Child],
    rates: FrameRates,
    ignored: int,
    usable: Usable,
) -> ServerStatus:
    """The server as it is now.

    Args:
        children: of each slot, who fills it, or has filled it last.
        ignored: control messages that could not be read.
        usable: what the machine leaves it.
    """
    now = time.monotonic()
    engines = [c for c in children if c.role == "engine"]
    fronts = [c for c in children if c.role == "front"]
    gateways = [c for c in children if c.role == "gateway"]
    return ServerStatus(
        version=__version__,
        pid=os.getpid(),
        state=state,
        uptime_s=now - facts.started_at,
        host=facts.config.listen.host,
        ports=facts.ports,
        http_port=facts.http_port,
        default_avatar=facts.config.avatars.default,
        engines=[_engine(e, now) for e in sorted(engines, key=lambda e: e.slot.number)],
        fronts=[_front(f, now, rates) for f in sorted(fronts, key=lambda f: f.slot.number)],
        capacity=sum(e.capacity_now for e in engines if e.state == "ready"),
        speakers=most_speakers(facts.config, engines, usable),
        frames_per_s=sum(rates.of(f) for f in fronts),
        ignored=ignored,
        gateways=[_gateway(g, now, facts) for g in gateways],
    )


def _engine(engine: Child, now: float) -> EngineStatus:
    return EngineStatus(
        name=engine.name,
        slot=engine.slot.number,
        pid=engine.pid,
        device=engine.device,
        state=engine.state,
        uptime_s=now - engine.started_at,
        restarts=engine.slot.restarts,
        avatars=sorted(engine.avatars),
        capacity=engine.capacity_now,
        silent_s=now - engine.last_heard_at,
        load=engine.load,
        reason=engine.slot.reason if engine.state == "gone" or engine.died_young else "",
        retry_s=max(0.0, engine.slot.retry_at - now) if engine.state == "gone" else 0.0,
    )


def _front(front: Child, now: float, rates: FrameRates) -> FrontStatus:
    return FrontStatus(
        name=front.name,
        pid=front.pid,
        state="ready" if front.state == "spare" else front.state,
        uptime_s=now - front.started_at,
        restarts=front.slot.restarts,
        load=front.front_load,
        frames_per_s=rates.of(front),
    )


def _gateway(gateway: Child, now: float, facts: ServerFacts) -> GatewayStatus:
    return GatewayStatus(
        name=gateway.name,
        pid=gateway.pid,
        state="ready" if gateway.state == "spare" else gateway.state,
        uptime_s=now - gateway.started_at,
        restarts=gateway.slot.restarts,
        ports=facts.gateway_ports,
        load=gateway.gateway_load,
        reason=gateway.slot.reason if gateway.state == "gone" or gateway.died_young else "",
    )


def avatar_statuses(
    catalogue: AvatarCatalogue, engines: list[Child], fronts: list[Child]
) -> list[AvatarStatus]:
    """All versions that engines hold or are to hold, and what is unloaded; by name and version."""
    there = [*catalogue.versions.values(), *catalogue.candidates.values()]
    statuses = [_avatar_status(catalogue, version, engines, fronts) for version in there]
    unloaded = catalogue.unloaded
    statuses += [AvatarStatus(name=name, version=0, state="unloaded") for name in unloaded]
    return sorted(statuses, key=lambda status: (status.name, status.version))


def _avatar_status(
    catalogue: AvatarCatalogue, version: Version, engines: list[Child], fronts: list[Child]
) -> AvatarStatus:
    key = version.key
    state: Literal["current", "loading", "leaving"] = "leaving" if version.retired_in else "current"
    if key in catalogue.candidates:
        state = "loading"
    loads = [engine.load for engine in engines]
    return AvatarStatus(
        name=version.name,
        version=version.number,
        state=state,
        uses=sum(front.front_load.avatars.get(key, 0) for front in fronts),
        engines=sorted(engine.name for engine in engines if key in engine.avatars),
        loaded_s=time.monotonic() - version.since,
        cached_bytes=sum(load.avatar_bytes.get(key, 0) for load in loads),
        shared_bytes=max((load.avatar_shared.get(key, 0) for load in loads), default=0),
    )
