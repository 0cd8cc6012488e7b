# SPDX-License-Identifier: Apache-2.0
"""/health: whether the engines work, for load balancers and for clients of the old service."""

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


class Health(msgspec.Struct):
    """The answer of /health."""

    healthy: bool
    total_backends: int
    healthy_count: int
    backends: list[Backend]


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
