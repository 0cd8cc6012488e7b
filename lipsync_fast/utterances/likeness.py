# SPDX-License-Identifier: Apache-2.0
"""Where in its loop an avatar may begin to speak instead of where it is, without a jump to be seen.

Two positions of the loop are alike when it moves the same way there and small grey thumbnails of
its pictures differ by no more than the loop itself changes within ``NEAR`` pictures, in the middle
of all of them. Positions that are so near to each other are alike in any case.

A *position* is one within the loop: 0 <= position < ``period_of(manifest)``.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.arrays import F32
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage

NEAR = 3
SIDE = 32
"""A thumbnail's sides in pixels."""
MOST_PICTURES = 5000
"""In a longer loop only positions that are near to each other are alike."""
REST_S = 0.001
"""Between two pictures that are looked at: others use this interpreter."""


def period_of(manifest: Manifest) -> int:
    """Slots after which the loop begins anew."""
    n = manifest.frame_count
    return n if manifest.loop == "cycle" or n == 1 else 2 * n - 2


def loop_positions_of(manifest: Manifest, avatar_frame: int) -> list[int]:
    """The positions over which an avatar's frame is shown: one, or one on each way."""
    period = period_of(manifest)
    back = avatar_frame if manifest.loop == "cycle" else (period - avatar_frame) % period
    return sorted({avatar_frame, back})


def _same_way(manifest: Manifest, one: int, other: int) -> bool:
    if manifest.loop == "cycle":
        return True
    turn = manifest.frame_count - 1
    # At either end it has no way: both fit.
    return one in (0, turn) or other in (0, turn) or (one < turn) == (other < turn)


def distance(period: int, one: int, other: int) -> int:
    """Slots between two positions, the shorter way round."""
    apart = (one - other) % period
    return min(apart, period - apart)


def thumbnails(package: AvatarPackage, stop: threading.Event | None = None) -> F32 | None:
    """All pictures, small and grey: N x pixels float32; None where it was told to stop, or a
    picture cannot be read, or there are very many."""
    count = package.manifest.frame_count
    if count > MOST_PICTURES:
        return None
    out = np.zeros((count, SIDE * SIDE), np.float32)
    for index in range(count):
        if stop is not None:
            if stop.is_set():
                return None
            time.sleep(REST_S)
        try:
            with Image.open(io.BytesIO(package.frame_bytes(index)), formats=("JPEG",)) as image:
                image.draft("L", (4 * SIDE, 4 * SIDE))
                small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
                out[index] = np.asarray(small, np.float32).ravel()
        except (OSError, ValueError):
            return None
    return out


class Likeness:
    """Which positions of an avatar's loop are alike.

    Args:
        small: ``thumbnails``; without them only near positions are.
    """

    def __init__(self, manifest: Manifest, small: F32 | None = None) -> None:
        self._manifest, self._small = manifest, small
        self.period = period_of(manifest)
        self._bound = 0.0
        if small is not None:
            order = [manifest.avatar_frame(position) for position in range(self.period + NEAR)]
            moved = small[order[NEAR:]] - small[order[: self.period]]
            self._bound = float(np.median(np.sqrt(np.mean(moved**2, axis=1))))

    def _apart(self, one: int, others: list[int]) -> F32:
        """How far pictures at positions differ from the one at a position, in grey levels."""
        assert self._small is not None
        index = self._manifest.avatar_frame
        moved = self._small[[index(position) for position in others]] - self._small[index(one)]
        apart: F32 = np.sqrt(np.mean(moved**2, axis=1))
        return apart

    def nearest(self, position: int, others: Iterable[int]) -> int | None:
        """The one of some positions that is alike: the nearest in the loop; None where none is."""
        there = [o for o in others if _same_way(self._manifest, position, o)]
        there.sort(key=lambda other: distance(self.period, position, other))
        if not there or distance(self.period, position, there[0]) <= NEAR:
            return there[0] if there else None
        if self._small is None:
            return None
        apart = self._apart(position, there)
        found = np.flatnonzero(apart <= self._bound)
        return there[int(found[0])] if len(found) else None

    def alike(self, position: int) -> NDArray[np.bool_]:
        """For each position of the loop, whether it may stand for this one."""
        out = np.zeros(self.period, np.bool_)
        ways = [o for o in range(self.period) if _same_way(self._manifest, position, o)]
        near = [o for o in ways if distance(self.period, position, o) <= NEAR]
        if self._small is not None:
            out[np.array(ways)[self._apart(position, ways) <= self._bound]] = True
        out[near] = True
        return out

    def cover(self) -> list[int]:
        """Few positions such that each one of the loop has an alike one among them; 0 is there,
        since sessions begin with it."""
        alike = np.array([self.alike(position) for position in range(self.period)])
        chosen, left = [0], ~alike[:, 0]
        while left.any():
            best = int(np.argmax(alike[left].sum(axis=0)))
            chosen.append(best)
            left &= ~alike[:, best]
        return sorted(chosen)
