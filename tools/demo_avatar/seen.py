# SPDX-License-Identifier: Apache-2.0
"""What can be seen of a package's mouth: the lips' gaps in its pictures, as the product plays it.

Where the mouth lies in each frame of the idle loop follows from the head's geometry alone; no
rendered picture is needed.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
from geometry import Geometry
from lips import UNIT
from motion import FRAMES, Motion
from mouth_measure import Poses
from numpy.typing import NDArray

import lipsync_fast

F32 = NDArray[np.float32]
RATE = 16_000


def save_places(work: pathlib.Path, geometry: Geometry) -> None:
    """Write WORK/places.npz, the ``rects`` and ``maps`` of dataset.py's loop.npz."""
    motion = Motion(geometry)
    left, top, _, _ = geometry.layout.window
    rects, maps = [], []
    for pose in motion.poses:
        from_x, from_y = moved = motion.mover.maps(pose)
        x0, y0, x1, y1 = rect = motion.rectangle(moved)
        square = np.s_[y0:y1, x0:x1]
        rects.append(rect)
        maps.append(np.stack([from_x[square] - left, from_y[square] - top]))
    partial = work / "places.part.npz"
    np.savez(partial, rects=np.array(rects, np.int32), maps=np.stack(maps).astype(np.float32))
    os.replace(partial, work / "places.npz")


class Seen:
    """A package that speaks; tells both gaps as they are drawn."""

    lookahead_ms = 212.5

    def __init__(self, work: pathlib.Path, path: pathlib.Path) -> None:
        geometry = Geometry(work)
        if not (work / "places.npz").exists():
            save_places(work, geometry)
        self._poses = Poses(work / "places.npz", geometry)
        self._avatar = lipsync_fast.open(path, threads=1)
        rects = [self._avatar.package.rect(i).corners for i in range(FRAMES)]
        if not np.array_equal(np.array(rects), self._poses.rects):
            raise SystemExit(f"{path}: its face rectangles are not those of WORK's head")

    def tell(self, pcm: F32) -> F32:
        """Both gaps of every frame in UNIT, after eight zeros; frames x 10."""
        gaps = [
            self._poses.gap(frame.image, frame.avatar_frame)
            for frame in self._avatar.render(pcm, RATE)
        ]
        out = np.zeros((len(gaps), 10), np.float32)
        out[:, 8:] = np.array(gaps) / UNIT
        return out
