# SPDX-License-Identifier: Apache-2.0
"""What landmarks say of a face besides where it is: its mouth's place, its eyes, where it looks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_OUTER_LIPS: dict[int, tuple[int, ...]] = {
    68: tuple(range(48, 60)),
    468: (61, 291, 0, 17, 37, 267, 84, 314),
    478: (61, 291, 0, 17, 37, 267, 84, 314),
}
"""Corners and edges of the lips, for numbers of landmarks that have them."""
_EYES: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    68: ((37, 41, 36, 39), (44, 46, 42, 45)),
    468: ((159, 145, 33, 133), (386, 374, 263, 362)),
    478: ((159, 145, 33, 133), (386, 374, 263, 362)),
}
"""Upper and lower lid, outer and inner corner of each eye."""
_SIDES: dict[int, tuple[int, int, int]] = {468: (234, 454, 1), 478: (234, 454, 1)}
"""Both sides of the face, and the tip of the nose."""
_NOSE_BEFORE = 1.29
"""How far the tip lies before both sides, in half widths (MediaPipe's canonical face)."""
BLINK = 0.65
"""Eyes are shut where they are open by less than this part of what is usual in the video."""


def mouth_boxes(points: NDArray[np.float32]) -> F64 | None:
    """Where the lips are in each frame.

    Args:
        points: N x K x 2, in pixels; NaN where there is no face.

    Returns:
        N x 4: left, top, right, bottom; NaN where there is no face. None where landmarks of this
        kind have no lips.
    """
    chosen = _OUTER_LIPS.get(points.shape[1])
    if chosen is None:
        return None
    lips = points[:, list(chosen)].astype(np.float64)
    return np.concatenate([lips.min(axis=1), lips.max(axis=1)], axis=1)


def eyes_shut(points: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """In which frames the eyes are shut; None where landmarks of this kind have no lids."""
    chosen = _EYES.get(points.shape[1])
    if chosen is None:
        return None
    opening = np.zeros(len(points))
    for up, low, outer, inner in chosen:
        opening += _apart(points, up, low) / np.maximum(_apart(points, outer, inner), 1e-6)
    known = opening[np.isfinite(opening)]
    usual = float(np.median(known)) if len(known) else 0.0
    return np.asarray(np.nan_to_num(opening, nan=np.inf) < BLINK * usual, np.bool_)


def turned(points: NDArray[np.float32]) -> F64 | None:
    """By how many degrees the head is turned to the picture's right in each frame; NaN: no face.

    None where landmarks of this kind do not say. An estimate: from where the tip of the nose lies
    between both sides of the face.
    """
    chosen = _SIDES.get(points.shape[1])
    if chosen is None:
        return None
    one, other, nose = (points[:, i].astype(np.float64) for i in chosen)
    across = (other - one) / 2
    half = np.maximum(np.hypot(*across.T), 1e-6)
    off = np.einsum("ij,ij->i", nose - (one + other) / 2, across) / half**2
    return np.asarray(np.degrees(np.arctan(off / _NOSE_BEFORE)), np.float64)


def _apart(points: NDArray[np.float32], a: int, b: int) -> F64:
    out: F64 = np.hypot(*(points[:, a].astype(np.float64) - points[:, b]).T)
    return out
