# SPDX-License-Identifier: Apache-2.0
"""When the person filmed is silent with the mouth shut: what an avatar may show while it idles.

A loop of frames in which somebody speaks goes on speaking in silence, and the network reads the
mouth off the picture that it is given. So the loop is taken from where the landmarks and the sound
both say that nothing is said.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.prepare.sound import FRAME_SAMPLES
from lipsync_fast.prepare.stabilise import runs

LEAST_S = 1.0
"""A stretch at rest is worth a loop from so long on."""
SHUT = 0.03
"""Lips are shut where their inner edges are so near, as a part of the face crop's side. The mesh
puts them 0.01 to 0.02 apart where they touch."""
OVER_FLOOR_DB, MOST_DB, LEAST_DB = 12.0, -36.0, -60.0
"""Silence is up to so much above the quietest tenth; but never above the one level (of full scale),
and always below the other."""
FLOOR_PERCENTILE = 10
FLICKER = 2
"""Frames of something else within a stretch, at most: a landmark's slip, a click."""

_LIPS = {68: (62, 66), 468: (13, 14), 478: (13, 14)}
"""Inner edges of the upper and the lower lip, for numbers of landmarks that have them."""


def mouth_opening(points: NDArray[np.float32], side: float) -> NDArray[np.float64] | None:
    """How far the lips are apart in each frame, as a part of the face crop's side.

    Args:
        points: N x K x 2, in pixels; NaN where there is no face.
        side: of the crop, in pixels.

    Returns:
        N; NaN where there is no face. None where landmarks of this kind have no lips.
    """
    lips = _LIPS.get(points.shape[1])
    if lips is None:
        return None
    upper, lower = (points[:, i].astype(np.float64) for i in lips)
    opening: NDArray[np.float64] = np.hypot(*(upper - lower).T) / side
    return opening


def quiet(pcm: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Whether each 40 ms are silence.

    Args:
        pcm: at 16 kHz, 640 samples for each of N frames.
    """
    blocks = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    power = np.einsum("ij,ij->i", blocks, blocks, dtype=np.float64)  # no copy: an hour is large
    levels = 10 * np.log10(power / (FRAME_SAMPLES * 2.0**30) + 1e-12)
    if not len(levels):
        return np.zeros(0, np.bool_)
    limit = np.percentile(levels, FLOOR_PERCENTILE) + OVER_FLOOR_DB
    return np.asarray(levels <= np.clip(limit, LEAST_DB, MOST_DB), np.bool_)


def at_rest(
    points: NDArray[np.float32], side: float, pcm: NDArray[np.int16] | None
) -> NDArray[np.bool_] | None:
    """In which frames the mouth is shut and nothing is heard.

    Args:
        points, side: as for ``mouth_opening``.
        pcm: the video's sound; None where it has none.

    Returns:
        N; None where landmarks do not say.
    """
    opening = mouth_opening(points, side)
    if opening is None:
        return None
    rest = np.asarray(np.nan_to_num(opening, nan=1.0) <= SHUT, np.bool_)
    if pcm is not None:
        silent = np.zeros(len(rest), np.bool_)
        heard = quiet(pcm)[: len(rest)]
        silent[: len(heard)] = heard
        rest &= silent
    for first, end in runs(~rest):
        if first > 0 and end < len(rest) and end - first <= FLICKER:
            rest[first:end] = True
    return rest
