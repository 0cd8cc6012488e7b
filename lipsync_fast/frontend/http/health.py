# SPDX-License-Identifier: Apache-2.0
"""Whether the server works, for load balancers, probes and clients of the old service.

    /health        whether frames can be made, in the old service's words: 200 or 503
    /health/live   whether this front answers: 200, or no answer. One that fails is to be restarted
    /health/ready  whether new sessions may come: 200 or 503. One that fails, as while the server
                   drains, is to get none; those that it has go on

Balancers that close the sessions of servers that fail a check must tell a server that is not ready
from a machine that is gone: ``/health/ready?unready=STATUS`` answers with another status.
"""

from __future__ import annotations

import msgspec

from lipsync_fast.frontend.services import Services
from lipsync_fast.ipc.control import Load


class Backend(msgspec.Struct):
    """An engine in /health, as clients of the old service know it."""

    address: str
    healthy: bool
    total_requests: int
    error_count: int


class Live(msgspec.Struct):
    """The answer of /health/live."""

    live: bool


class Readiness(msgspec.Struct):
    """The answer of /health/ready.

    Attributes:
        reason: why no new sessions are to come; nothing where they may.
    """

    ready: bool
    reason: str = ""


class Health(msgspec.Struct):
    """The answer of /health."""

    healthy: bool
    total_backends: int
    healthy_count: int
    backends: list[Backend]


UNREADY = {"": 503, "200": 200, "404": 404, "503": 503}
"""Statuses that an answer may have which says that no new sessions are to come."""


def readiness_of(services: Services) -> Readiness:
    """Whether new sessions may come."""
    if services.admission.draining.is_set():
        return Readiness(False, "the server is going away")
    if not health_of(services).healthy:
        return Readiness(False, "no engine works")
    return Readiness(True)


def health_of(services: Services) -> Health:
    """How the engines do; healthy while one works and the server is not about to go."""
    status = services.statistics.server
    loads = {e.name: e.load for e in status.engines} if status is not None else {}
    backends = []
    for info in services.pool.engines:
        load = loads.get(info.name, Load())
        total = load.made + load.failed + load.skipped
        backends.append(Backend(info.name, bool(info.avatars), total, load.failed))
    count = sum(b.healthy for b in backends)
    alive = services.pool.capacity > 0 and not services.admission.draining.is_set()
    return Health(alive and count > 0, len(backends), count, backends)
