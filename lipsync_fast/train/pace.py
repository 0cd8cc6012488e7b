# SPDX-License-Identifier: Apache-2.0
"""How fast avatars are on this machine's processors, measured in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.cpu import CpuBackend
from lipsync_fast.engine.capacity import measure
from lipsync_fast.engine.splice import FrameEncoder

ROUNDS, SECONDS = 5, 0.5
"""A round measures each avatar once; the medians count."""


def paces(avatars: Sequence[Path], threads: int) -> list[float]:
    """Frames a second of each avatar, as an engine measures them when it starts.

    From mel rows to JPEGs, by processor time: as if so many processors were there for it alone.

    Args:
        avatars: their packages.
        threads: that make a frame each.

    Raises:
        AvatarError: one cannot be used.
    """
    found: list[list[float]] = [[] for _ in avatars]
    with ExitStack() as stack:
        backend = stack.enter_context(closing(CpuBackend(threads, live=True)))
        encoder = FrameEncoder()
        loaded = []
        for path in avatars:
            avatar = RegisteredAvatar.open(backend, path)
            stack.callback(avatar.package.close)
            loaded.append(avatar)
        for _ in range(ROUNDS):
            for rates, avatar in zip(found, loaded, strict=True):
                rates.append(measure(backend, encoder, avatar, SECONDS))
    return [statistics.median(rates) for rates in found]
