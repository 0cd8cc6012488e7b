# SPDX-License-Identifier: Apache-2.0
"""A backend that has every picture at once: what is left to measure is everything around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.windows import FEATURE_SIZE
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import LoadedAvatar, RegionJob
from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.geometry import Rect

JPEG = os.urandom(60_000)


class Loaded:
    """An avatar that costs nothing."""

    def __init__(self, package: AvatarPackage) -> None:
        self.package = package


class Instant:
    """A backend that has every picture at once."""

    name, depth, warms = "instant", 8, 1
    numerics, threads = "", None
    takes_sound = encodes = False
    device_memory = (0, 0)

    def __init__(self) -> None:
        self.cpu_time = CpuTime()
        self.cache_bytes: dict[str, int] = {}

    def load(self, package: AvatarPackage) -> Loaded:
        return Loaded(package)

    def unload(self, avatar: LoadedAvatar) -> None:
        pass

    def warm(self, avatar: LoadedAvatar, frames: Sequence[tuple[int, Rect]]) -> int:
        return 0

    def settle(self, timeout_s: float) -> bool:
        return True

    def avatar_bytes(self, avatar: LoadedAvatar) -> tuple[int, int]:
        return 0, 0

    def share(self, avatar: LoadedAvatar, fd: int) -> None:
        pass

    def features(self, avatar: LoadedAvatar, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros((len(mel), FEATURE_SIZE), np.float32)

    def regions(self, jobs: Sequence[RegionJob]) -> list[NDArray[np.uint8]]:
        raise NotImplementedError

    def compose(self, avatar: LoadedAvatar, index: int, region: Any) -> NDArray[np.uint8]:
        raise NotImplementedError

    def submit(
        self, jobs: Sequence[RegionJob], finish: Callable[[int, Any], Any]
    ) -> list[Future[Any]]:
        made: list[Future[Any]] = []
        for _ in jobs:
            future: Future[Any] = Future()
            future.set_result((JPEG, Rect(0, 0, 1280, 720)))
            made.append(future)
        return made

    def close(self) -> None:
        pass
