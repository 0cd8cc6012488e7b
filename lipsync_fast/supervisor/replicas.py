# SPDX-License-Identifier: Apache-2.0
"""Which engines load an avatar.

All do, while their memory allows; so any of them can take any job. A GPU's memory is its engine's
budget, whose heartbeats tell how much is used (a CPU engine has none, and always has room):

    an avatar comes into use   engines with room load it; where none has, the one with most left
    all that hold it are busy  one more loads it, the least busy one, full or not: its backend makes
                               room in its caches, or refuses, and it is asked again after a while
    the default avatar         every engine loads it before it is ready
"""

from __future__ import annotations

from lipsync_fast.supervisor.children import Child

BUSY = 0.7
"""Share of its capacity from which on an engine's avatars are loaded by another one, too."""


def initial_holders(key: str, engines: list[Child]) -> list[Child]:
    """Who is to load an avatar that comes into use."""
    roomy = [engine for engine in engines if engine.has_room]
    if roomy or any(key in engine.avatars | engine.loading for engine in engines):
        return roomy
    return sorted(engines, key=memory_left)[-1:]


def next_holder(key: str, engines: list[Child]) -> Child | None:
    """Who is to load it besides those that do, or in their place when they have died; None where
    enough do."""
    working = [engine for engine in engines if engine.state == "ready"]
    if any(key in engine.loading for engine in working):
        return None
    holders = [engine for engine in working if key in engine.avatars]
    others = [e for e in working if key not in e.avatars and key not in e.load_errors]
    if not holders:
        return max(others, key=memory_left, default=None)
    if any(utilisation(engine) < BUSY for engine in holders):
        return None
    return min(others, key=utilisation, default=None)


def memory_left(engine: Child) -> int:
    """Bytes of its GPU that nobody uses."""
    return engine.load.device_memory_total - engine.load.device_memory_used


def utilisation(engine: Child) -> float:
    """The share of its capacity that an engine uses."""
    return engine.load.frames_per_s / max(1.0, engine.capacity_now)
