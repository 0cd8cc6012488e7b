# SPDX-License-Identifier: Apache-2.0
"""A film's mouths told by a few of them, and which of them a sound asks for.

    a film's mouths    -> K frames, each among others like it the sharpest, its head as it mostly is
    what is heard      -> K shares, which of them it is most like

A network that is to learn a whole film's mouths learns their mean: no two frames whose mouths
measure alike are alike in every pixel. Laid over a picture, a few are the same each time, and can
be learnt sharply from few steps. Between two that are alike it finds its own way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.arrays import F32
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.train.data import Crops
from lipsync_fast.train.look import laplacian
from lipsync_fast.train.mouths import LIPS, Mouths

COUNT = 16
"""Mouths, where a film has as many."""
OPENING_COUNTS = 2.0
"""The opening counts so much more than what else is heard."""
LEAST_HEARD = 0.1
"""What cannot be heard counts so little, so that alike mouths are alike in it, too."""
ROUNDS = 50
"""Of k-means."""
POSE_COUNTS, SHARP_COUNTS = 0.03, 0.5
"""What a head turned aside by a pixel, and sharpness (its logarithm), weigh against the distance
from a cluster's middle."""
WIDTH = 0.2
"""Of the kernel, in median squared distances between neighbours."""
ROOM = 4
"""Pixels around the lips in which sharpness is measured."""


class Exemplars:
    """The frames whose mouths are learnt.

    Args:
        crops: of the film.
        mouths: of the film.
        hearable: r of each measure, foretold from the sound.
        seed: of k-means' beginning.

    Attributes:
        frames: K numbers of frames, the least open mouth first.
    """

    def __init__(self, crops: Crops, mouths: Mouths, hearable: F32, seed: int) -> None:
        self._weight = np.maximum(hearable, LEAST_HEARD).astype(np.float32)
        self._weight[0] *= OPENING_COUNTS
        known = mouths.usable
        places = mouths.measures[known] * self._weight
        middles, part = clusters(places, COUNT, np.random.default_rng([seed, 23]))
        aside = mouths.turned(known)
        chosen = []
        for number, middle in enumerate(middles):
            among = np.flatnonzero(part == number)
            if not len(among):
                continue
            sharp = np.array([_sharpness(crops, mouths, int(known[i])) for i in among])
            score = (
                ((places[among] - middle) ** 2).sum(1)
                + POSE_COUNTS * aside[among]
                - SHARP_COUNTS * np.log(sharp / np.median(sharp))
            )
            chosen.append(int(known[among[np.argmin(score)]]))
        self.frames = np.array(sorted(chosen, key=lambda i: float(mouths.opening[i])), np.int64)
        self._places = mouths.measures[self.frames] * self._weight
        apart = _apart(self._places, self._places)
        apart[np.diag_indices(len(apart))] = np.inf
        near = apart.min(1)
        self._scale = WIDTH * float(np.median(near[np.isfinite(near)])) if len(near) > 1 else 1.0

    def __len__(self) -> int:
        return len(self.frames)

    def shares(self, measures: F32) -> F32:
        """Which mouths measured ones are like: N x 8 to N x K, rows that add up to 1."""
        near = -_apart(measures * self._weight, self._places) / (2 * self._scale + 1e-9)
        out = np.exp(near - near.max(1, keepdims=True))
        return np.asarray(out / out.sum(1, keepdims=True), np.float32)


def clusters(points: F32, count: int, rng: np.random.Generator) -> tuple[F32, NDArray[np.int64]]:
    """k-means (Lloyd's, begun by k-means++): middles, at most ``count`` x D, and each point's."""
    middles = points[rng.integers(len(points))][None]
    while len(middles) < count:
        nearest = _apart(points, middles).min(1)
        total = float(nearest.sum())
        if total <= 1e-9:  # fewer different points than that
            break
        middles = np.concatenate(
            [middles, points[rng.choice(len(points), p=nearest / total)][None]]
        )
    for _ in range(ROUNDS):
        part = _apart(points, middles).argmin(1)
        middles = np.stack(
            [
                points[part == k].mean(0) if (part == k).any() else middles[k]
                for k in range(len(middles))
            ]
        )
    return middles, _apart(points, middles).argmin(1)


def _apart(a: F32, b: F32) -> NDArray[np.float64]:
    """Squared distances between the rows of two matrices."""
    return np.asarray(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(2), np.float64)


def _sharpness(crops: Crops, mouths: Mouths, frame: int) -> float:
    """Variance of the Laplacian around a frame's lips; never 0."""
    lips = mouths.points[frame][list(LIPS)]
    low = np.maximum(lips.min(0) + REGION_BORDER - ROOM, 0).astype(int)
    high = (lips.max(0) + REGION_BORDER + ROOM).astype(int)
    part = crops.crop(frame)[low[1] : high[1], low[0] : high[0]]
    return float(laplacian(part).var()) + 1e-3 if min(part.shape[:2]) > 2 else 1e-3
