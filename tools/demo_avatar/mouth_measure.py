# SPDX-License-Identifier: Apache-2.0
"""Measurements on pictures of the demo person: lip gap, sharpness, seam.

The lip gap is read from colours alone. In a column through the middle of the mouth, a pixel
belongs to the inside of the mouth when it is darker than lips ever are, as grey as teeth
(red hardly above green), or as cool as the tongue (green hardly above blue); a pixel in between
counts in part. The head's motion is undone first
by the affine map that fits the idle loop's exact motion near the mouth.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from geometry import Geometry
from layout import FACE_SIDE, LIPS_Y
from numpy.typing import NDArray
from person import Tints

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

MIDDLE = FACE_SIDE // 2
COLUMNS = slice(MIDDLE - 12, MIDDLE + 14)
WHOLE = slice(MIDDLE - 34, MIDDLE + 35)
ROWS = slice(LIPS_Y - 24, LIPS_Y + 62)
"""Where the gap is looked for, in the canonical mouth box: its middle, most of its width."""
CLOSED_PX = 1.5
"""A measured gap up to this is a closed mouth: the shadow of the seam."""
SEALED_PX = 1.25
"""Widest opening of lips that are shut over the whole width: a stricter closed mouth."""
PATCH = (-55, -40, 55, 65)
"""Lips and what is between them, x0, y0, x1, y1 from the closed lips' middle."""


class Gap(NamedTuple):
    """A mouth's opening in pixels: in its middle (median), and the widest decile of its width."""

    middle: float
    widest: float


def lip_gap(mouth: U8, tints: Tints) -> Gap:
    """Gap between the lips of a canonical mouth box (RGB) of a person with these ``tints``."""
    part = mouth[ROWS, WHOLE].astype(np.float32)
    dark = _inside(part[..., 0], tints.dark)
    grey = _inside(part[..., 0] - part[..., 1], tints.grey)
    cool = _inside(part[..., 1] - part[..., 2], tints.cool)
    inside: F32 = np.maximum(np.maximum(dark, grey), cool)
    runs = _largest_run(inside)
    middle = runs[COLUMNS.start - WHOLE.start : COLUMNS.stop - WHOLE.start]
    return Gap(float(np.median(middle)), float(np.quantile(runs, 0.9)))


def _inside(level: F32, bounds: tuple[float, float]) -> F32:
    """1 up to the lower bound, 0 from the upper one on."""
    inside, outside = bounds
    out: F32 = np.clip((outside - level) / (outside - inside), 0, 1)
    return out


def _largest_run(inside: F32) -> F32:
    """Per column, the sum over the run of inside pixels with the largest sum.

    Shadows under the lower lip and nostrils are runs of their own; up to three lip-coloured
    pixels (a tongue's highlight) are bridged.
    """
    out = np.zeros(inside.shape[1], np.float32)
    for column in range(inside.shape[1]):
        best = run = 0.0
        bridged = 0
        for value in inside[:, column]:
            bridged = 0 if value > 0.3 else bridged + 1
            run = 0.0 if bridged > 3 else run + float(value)
            best = max(best, run)
        out[column] = best
    return out


def sharpness(picture: U8) -> float:
    """Variance of the Laplacian of the luma."""
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(luma, cv2.CV_32F).var())


@dataclass(frozen=True)
class Seam:
    """Steps across the edge of the generated area, in grey levels: now, and in the avatar's own
    frame at the same places."""

    generated: float
    original: float


def seam(image: U8, original: U8, generated: NDArray[np.bool_]) -> Seam:
    """Mean absolute step between neighbours of which one is generated and one is not."""
    new, old = image.astype(np.int16), original.astype(np.int16)
    steps_new, steps_old = [], []
    for axis in (0, 1):
        edge = np.diff(generated.astype(np.int8), axis=axis) != 0
        steps_new.append(np.abs(np.diff(new, axis=axis))[edge])
        steps_old.append(np.abs(np.diff(old, axis=axis))[edge])
    return Seam(float(np.concatenate(steps_new).mean()), float(np.concatenate(steps_old).mean()))


class Poses:
    """Where the canonical mouth lies in each frame of the idle loop."""

    def __init__(self, loop: pathlib.Path, geometry: Geometry) -> None:
        """``loop``: dataset.py's loop.npz, or seen.py's places.npz, of the same person."""
        self.layout, self.tints = geometry.layout, geometry.person.tints
        with np.load(loop) as z:
            self.rects, self.maps = z["rects"], z["maps"]
        self.affine = [self._fit(m) for m in self.maps]

    def _fit(self, maps: F32) -> NDArray[np.float64]:
        """The 2 x 3 affine map from canonical picture to face square, near the mouth."""
        yy, xx = np.mgrid[0:FACE_SIDE, 0:FACE_SIDE]
        left, top, _, _ = self.layout.window
        x, y = self.layout.lips
        cx, cy = maps[0] + left, maps[1] + top
        near = (np.abs(cx - x) < 60) & (np.abs(cy - y) < 60)
        a = np.stack([cx[near], cy[near], np.ones(near.sum())], 1)
        b = np.stack([xx[near], yy[near]], 1)
        fit: NDArray[np.float64] = np.linalg.lstsq(a, b, rcond=None)[0].T
        return fit

    def mouth(self, image: U8, frame: int) -> U8:
        """The canonical mouth box (RGB) of a whole frame shown in pose ``frame``."""
        x0, y0, x1, y1 = self.layout.mouth
        to_square = self.affine[frame] @ np.array([[1, 0, x0], [0, 1, y0], [0, 0, 1]])
        size = (x1 - x0, y1 - y0)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        square = self.square(image, frame)
        moved = cv2.warpAffine(
            square, to_square, size, flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return moved.astype(np.uint8)

    def gap(self, image: U8, frame: int) -> Gap:
        """The gap between the lips of a whole frame shown in pose ``frame``."""
        return lip_gap(self.mouth(image, frame), self.tints)

    def square(self, image: U8, frame: int) -> U8:
        """The face square of a whole frame."""
        x0, y0, x1, y1 = self.rects[frame]
        return np.ascontiguousarray(image[y0:y1, x0:x1])

    def lips(self, square: U8, frame: int) -> U8:
        """The lips' patch of a face square, unresampled."""
        x, y = self.layout.lips
        x0, y0, x1, y1 = x + PATCH[0], y + PATCH[1], x + PATCH[2], y + PATCH[3]
        corners = self.affine[frame] @ np.array([[x0, x1], [y0, y1], [1, 1]])
        (x0, x1), (y0, y1) = np.round(corners).astype(int)
        return np.ascontiguousarray(square[max(0, y0) : y1, max(0, x0) : x1])
