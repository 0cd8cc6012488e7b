# SPDX-License-Identifier: Apache-2.0
"""Files of 110 landmarks, and the face crop that three of them span."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.rectangles import LEAST_SIDE, clipped
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.geometry import Rect
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.files import read_file

LANDMARKS = 110


def read_landmarks(path: Path, root: Path | None = None) -> NDArray[np.int64]:
    """The 110 points of a .lms file, 110 x 2, read as float32 and truncated.

    Args:
        root: a resolved folder that the file must lie in, wherever links lead.

    Raises:
        AvatarImportError: names the file and the line.
    """
    try:
        data = read_file(path, "landmarks", limits.LANDMARK_BYTES, root)
    except FileNotFoundError:
        raise AvatarImportError(f"{path}: missing; every frame needs its landmarks") from None
    text = data.decode("ascii", "backslashreplace")
    points: list[tuple[float, float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            x, y = (float(v) for v in line.split())
        except ValueError:
            raise AvatarImportError(
                f'{path}, line {number}: expected "x y", got {line[:60]!r}'
            ) from None
        if not (math.isfinite(x) and math.isfinite(y)) or max(abs(x), abs(y)) > 1e6:
            raise AvatarImportError(f"{path}, line {number}: {line[:60]!r} is not a pixel position")
        points.append((x, y))
    if len(points) != LANDMARKS:
        raise AvatarImportError(
            f"{path}, line {len(points)}: {len(points)} landmarks, expected {LANDMARKS}"
        )
    return np.array(points, np.float32).astype(np.int64)


def face_square(points: NDArray[np.int64]) -> Rect:
    """The face crop of the reference: x from landmark 1 to 31, y from landmark 52 on, square."""
    x1, y1, x2 = int(points[1, 0]), int(points[52, 1]), int(points[31, 0])
    return Rect(x1, y1, x2 - x1, x2 - x1)


def crop_rectangle(points: NDArray[np.int64], width: int, height: int, where: str) -> Rect:
    """The face crop clipped to the frame.

    Raises:
        AvatarImportError: the landmarks span nothing inside the frame.
    """
    square = face_square(points)
    inside = clipped(square, width, height)
    if min(inside.size) < LEAST_SIDE:
        x1, y1, x2, y2 = square.corners
        raise AvatarImportError(
            f"{where}: the face crop ({x1}, {y1}) to ({x2}, {y2}) has no room in the"
            f" {width} x {height} frame (landmarks 1, 31 and 52)"
        )
    return inside
