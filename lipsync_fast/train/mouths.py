# SPDX-License-Identifier: Apache-2.0
"""What the mouth does in each frame of a film, and where the head is, read off its face mesh.

Everything is in pixels of the network's region, so that frames can be laid over each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.arrays import F32
from lipsync_fast.errors import TrainingError
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.geometry import Rect

F64 = NDArray[np.float64]

MESHES = (468, 478)
"""Numbers of landmarks that this is for: MediaPipe's."""
UPPER, LOWER, LEFT, RIGHT = 13, 14, 61, 291
"""Inner edges of the lips, and the corners of the mouth."""
EYES = 33, 263
CHIN = 152
LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
)  # fmt: skip
STILL = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 98, 327, 127, 356, 234, 454, 10, 151)
"""Points that speech does not move: eyes, nose, temples, forehead."""
OUTER_LIPS = (*LIPS[:11], *LIPS[19:10:-1])
"""Around the mouth, in order."""
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""The outline of the face."""
NEAR = (*LIPS, CHIN, 175, 199, 200, 18, 83, 313, 164, 167, 393, 2, 205, 425, 50, 280, 187, 411)
"""Points around the mouth by which its part of the face is laid over another frame's."""
POSE_RIDGE = 1e-2
SHAPES = 6
"""Principal components of the lips' outline."""
MEASURES = 2 + SHAPES
SHUT_SHARE, SHUT_LEAST = 0.2, 0.03
"""Frames whose opening is among so many of the smallest count as shut, and all below the other
(in distances between the eyes)."""
WINDOW_STEP = 4


def opening(points: NDArray[np.floating]) -> F64:
    """How far the lips are apart in N meshes (N x K x 2), in distances between the eyes; NaN
    where there is no face."""
    at = points.astype(np.float64)
    gap = np.linalg.norm(at[:, UPPER] - at[:, LOWER], axis=1)
    eyes = np.linalg.norm(at[:, EYES[0]] - at[:, EYES[1]], axis=1)
    return np.asarray(gap / eyes, np.float64)


class Mouths:
    """A film's mouths and poses.

    Args:
        points: N x 468 or 478 x 2, in pixels of the frame; NaN where there is no face.
        rects: the N face crops.
        region: side of the network's region.
        learnt: numbers of the frames that may be learnt from; means and components are theirs.

    Attributes:
        opening: N; NaN where there is no face.
        measures: N x 8 float32, each of variance 1 over the frames learnt from: opening, width,
            and the outline's principal components once the head is laid still.
        usable: frames learnt from in which there is a face.
        shut: those of them whose mouth is shut.

    Raises:
        TrainingError: landmarks of another kind, or too few faces.
    """

    def __init__(
        self, points: NDArray[np.float32], rects: list[Rect], region: int, learnt: list[int]
    ) -> None:
        if points.shape[1] not in MESHES:
            raise TrainingError(
                f"{points.shape[1]} landmarks a frame; what follows the sound needs a face mesh"
                " (468 or 478): prepare it with the detector mesh"
            )
        corners = np.array([r.corners for r in rects], np.float64)
        scale = (region + 2 * REGION_BORDER) / (corners[:, 2:] - corners[:, :2])
        self.points: F64 = (points - corners[:, None, :2]) * scale[:, None] - REGION_BORDER
        self.opening = opening(points)
        there = np.asarray(np.isfinite(points).all(axis=(1, 2)))
        self.usable = np.array([i for i in learnt if there[i]], np.int64)
        if len(self.usable) < len(learnt) // 2 or len(self.usable) < 2 * MEASURES:
            raise TrainingError(f"only {len(self.usable)} of {len(learnt)} frames show a face")
        self._there = there
        self.measures = self._measured()
        limit = max(SHUT_LEAST, float(np.quantile(self.opening[self.usable], SHUT_SHARE)))
        self.shut_limit = limit
        self.shut = self.usable[self.opening[self.usable] <= limit]
        still = self.points[:, STILL].reshape(len(points), -1)
        self._still = np.where(np.isfinite(still), still, 1e6)
        self._follows_head = self._by_head()

    def _measured(self) -> F32:
        eyes = np.linalg.norm(self.points[:, EYES[0]] - self.points[:, EYES[1]], axis=1)
        width = np.linalg.norm(self.points[:, LEFT] - self.points[:, RIGHT], axis=1) / eyes
        still = np.median(self.points[self.usable][:, STILL], 0)
        lips = np.full((len(self.points), 2 * len(LIPS)), np.nan)
        for i in np.flatnonzero(self._there):
            move = _affine(self.points[i, STILL], still)
            lips[i] = (_with_one(self.points[i, LIPS]) @ move.T).ravel()
        mean = lips[self.usable].mean(0)
        shapes = np.linalg.svd(lips[self.usable] - mean, full_matrices=False)[2][:SHAPES]
        raw = np.column_stack([self.opening, width, (lips - mean) @ shapes.T])
        known = raw[self.usable]
        out: F32 = ((raw - known.mean(0)) / (known.std(0) + 1e-9)).astype(np.float32)
        return out

    def _by_head(self) -> F64:
        """How points near the mouth move with the head alone: still coordinates to theirs.

        A mouth lies in front of the eyes, so a head that turns moves it farther than them. What
        the mouth does by itself is told apart by its measures.
        """
        known = self.usable
        still = self._still[known]
        inputs = np.concatenate([still - still.mean(0), self.measures[known]], 1)
        near = self.points[known][:, NEAR].reshape(len(known), -1)
        gram = inputs.T @ inputs / len(known)
        gram[np.diag_indices(len(gram))] += POSE_RIDGE * np.trace(gram) / len(gram)
        return np.linalg.solve(gram, inputs.T @ (near - near.mean(0)) / len(known))[
            : still.shape[1]
        ]

    def laid_over(self, what: int, onto: int) -> F64:
        """2 x 3: from a pixel of the region of frame ``onto`` to the same place of the face, around
        the mouth, in frame ``what``."""
        near = self.points[what, NEAR]
        moved = (self._still[onto] - self._still[what]) @ self._follows_head
        return _affine(near + moved.reshape(-1, 2), near)

    def outlines(self, what: int, onto: int) -> tuple[F64, F64]:
        """The lips' and the face's outlines of a frame, laid over another: pixels of its region."""
        back = self.laid_over(what, onto)
        inverse = np.linalg.inv(back[:, :2])
        lips, face = (
            (self.points[what, list(part)] - back[:, 2]) @ inverse.T for part in (OUTER_LIPS, OVAL)
        )
        return lips, face

    def turned(self, among: NDArray[np.int64]) -> F64:
        """How far each of these heads is from where the head mostly is: the mean over its still
        points, in pixels."""
        middle = np.median(self._still[self.usable], 0)
        return np.asarray(np.abs(self._still[among] - middle).mean(1), np.float64)

    def window(self, region: int) -> Rect:
        """The part of the region that speech moves: the lips and the chin in all frames, and
        as much beside them as skin follows."""
        at = self.points[self.usable]
        lips = at[:, LIPS]
        width = float(np.median(lips[..., 0].max(1) - lips[..., 0].min(1)))
        left, top = np.quantile(lips.min(1), 0.02, 0) - (0.4 * width, 0.3 * width)
        right = np.quantile(lips[..., 0].max(1), 0.98) + 0.4 * width
        bottom = np.quantile(at[:, CHIN, 1], 0.98) + 0.1 * width
        last = region - WINDOW_STEP
        x0, y0 = (max(WINDOW_STEP, int(v) // WINDOW_STEP * WINDOW_STEP) for v in (left, top))
        x1, y1 = (min(last, -int(-v // WINDOW_STEP) * WINDOW_STEP) for v in (right, bottom))
        return Rect(x0, y0, x1 - x0, y1 - y0)


def _with_one(points: F64) -> F64:
    return np.concatenate([points, np.ones((len(points), 1))], 1)


def _affine(source: F64, target: F64) -> F64:
    """2 x 3, by least squares."""
    return np.asarray(np.linalg.lstsq(_with_one(source), target, rcond=None)[0].T, np.float64)
