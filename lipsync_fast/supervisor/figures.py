# SPDX-License-Identifier: Apache-2.0
"""What is told of avatars: their versions, who uses them, who holds them, what that takes."""

from __future__ import annotations

import time
from typing import Literal

from lipsync_fast.ipc.status import AvatarStatus
from lipsync_fast.supervisor.avatars import AvatarsInUse
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.versions import Version


def avatar_statuses(
    avatars: AvatarsInUse, engines: list[Child], fronts: list[Child]
) -> list[AvatarStatus]:
    """All versions that engines hold or are to hold, and what is unloaded; by name and version."""
    there = [*avatars.versions.values(), *avatars.candidates.values()]
    found = [_status(avatars, version, engines, fronts) for version in there]
    unloaded = avatars.unloaded
    found += [AvatarStatus(name=name, version=0, state="unloaded") for name in unloaded]
    return sorted(found, key=lambda status: (status.name, status.version))


def _status(
    avatars: AvatarsInUse, version: Version, engines: list[Child], fronts: list[Child]
) -> AvatarStatus:
    key = version.key
    state: Literal["current", "loading", "leaving"] = "leaving" if version.left else "current"
    if key in avatars.candidates:
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
