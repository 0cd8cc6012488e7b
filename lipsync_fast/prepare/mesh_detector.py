# SPDX-License-Identifier: Apache-2.0
"""The detector that comes with the package: the face's mesh of 468 points in each frame.

The mesh is laid where the last frame's was; where there is none, or it is lost, faces are looked
for in the whole picture. Of several faces the largest is taken, and followed from then on. Each
second it is looked whether there are others, and whether it is still a face that is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.arrays import F32
from lipsync_fast.errors import PrepareError
from lipsync_fast.prepare.face_nets import POINTS, SURE, FaceNets, Square, square_of
from lipsync_fast.timing import FPS

NAME = "mesh"
OTHER = 0.5
"""A second face counts from this part of the followed one's side on."""
APART = 0.5
"""Faces whose middles are farther apart, in sides, are two."""
SEVERAL = (
    "there is more than one face in the picture; the largest one was taken and followed: look at"
    " the sheet, and cut the video where it is another person's"
)


class MeshDetector:
    """MediaPipe's face mesh, with the nets of lipsync_fast/data/faces.

    Args:
        threads: of a frame, in digits, as it comes from the command line.

    Raises:
        PrepareError: ``threads`` is no number.
    """

    version = "2"

    def __init__(self, threads: str = "1") -> None:
        if not (threads.isascii() and threads.isdigit() and 1 <= int(threads) <= 64):
            raise PrepareError(f"detector {NAME}: threads={threads!r}: expected 1 to 64")
        self._nets = FaceNets(int(threads))
        self._last: F32 | None = None
        self.warnings: list[str] = []

    def follow(self, points: NDArray[np.float32] | None) -> None:
        """Landmarks of the frame before the next ``detect``'s first one; None where none were."""
        self._last = points if points is not None and np.isfinite(points).all() else None

    def detect(self, pictures: Sequence[NDArray[np.uint8]], first: int) -> NDArray[np.float32]:
        """As ``Detector.detect``: B x 468 x 2."""
        out = np.full((len(pictures), POINTS, 2), np.nan, np.float32)
        for k, rgb in enumerate(pictures):
            picture = Image.fromarray(rgb)
            if (first + k) % FPS == 0:
                self._look_around(picture)
            found = self._followed(picture)
            if found is None:
                found = self._searched(picture)
            if found is not None:
                out[k] = found
            self._last = found
        return out

    def _followed(self, picture: Image.Image) -> F32 | None:
        """The mesh near the last one."""
        if self._last is None:
            return None
        points, sure = self._nets.mesh(picture, square_of(self._last))
        return points if sure >= SURE else None

    def _searched(self, picture: Image.Image) -> F32 | None:
        """The mesh of the largest face there is; laid twice, the second time by the first."""
        for face in chain.from_iterable(self._nets.faces(picture)):
            points, sure = self._nets.mesh(picture, face.square)
            if sure < SURE:
                continue
            points, sure = self._nets.mesh(picture, square_of(points))
            if sure >= SURE:
                return points
        return None

    def _look_around(self, picture: Image.Image) -> None:
        """Notice other faces; forget what is followed where no face is found there any more."""
        faces = [face.square for face in next(self._nets.faces(picture), [])]
        if not faces:
            return
        if self._last is None:
            ours = faces[0]
        else:
            ours = square_of(self._last)
            if all(_apart(face, ours) for face in faces):
                self._last = None
                ours = faces[0]
        others = [f for f in faces if _apart(f, ours) and f.side >= OTHER * ours.side]
        if others and SEVERAL not in self.warnings:
            self.warnings.append(SEVERAL)


def _apart(a: Square, b: Square) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) > APART * min(a.side, b.side)
