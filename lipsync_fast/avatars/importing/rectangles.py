# SPDX-License-Identifier: Apache-2.0
"""Face rectangles as other software left them: clipped, mended where a face was lost, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.errors import AvatarImportError
from lipsync_fast.geometry import Rect

LEAST_SIDE = 8
FARTHEST = 1_000_000
"""Beyond this no number is a position in a picture."""
MOST_LOST = 0.1
"""Part of the frames that may be without a face."""
JUMP = 0.1
"""Part of its side by which a rectangle may grow, shrink or wander from one frame to the next."""
NEAR = 0.02
"""Part of its side that a rectangle keeps from the frame's edge, so that no mouth lies at it."""


def clipped(rect: Rect, width: int, height: int) -> Rect:
    """The part of a rectangle that lies in the frame."""
    x1, y1, x2, y2 = rect.corners
    return Rect.from_corners(max(0, x1), max(0, y1), min(width, x2), min(height, y2))


@dataclass(slots=True)
class Track:
    """The rectangles of all frames.

    Attributes:
        rects: inside the frame, each at least 8 x 8.
        wanted: as they were given, before they were clipped.
        lost: frames that had none.
    """

    rects: list[Rect]
    wanted: list[Rect]
    lost: list[int] = field(default_factory=list)

    def warnings(self, width: int, height: int) -> list[str]:
        """What a person should look at: lost faces, mouths near the edge, jumps."""
        found = []
        if self.lost:
            found.append(
                f"{_frames(self.lost)} without a face; its rectangle is taken from those around"
            )
        wanted, rects = (
            np.array([r.corners for r in some], np.int64) for some in (self.wanted, self.rects)
        )
        past = np.abs(wanted - rects).max(axis=1)
        if past.any():
            found.append(
                f"mouth near the edge: the face crop runs past the frame by up to {past.max()}"
                f" pixels in {_frames(np.flatnonzero(past))}; it was cut there"
            )
        sides = rects[:, 2:] - rects[:, :2]
        room = np.minimum.reduce(  # at the top lies no mouth
            [rects[:, 0], width - rects[:, 2], height - rects[:, 3]]
        )
        near = (room < NEAR * sides.max(axis=1)) & (past == 0)
        if near.any():
            found.append(
                f"mouth near the edge: the face crop touches it in {_frames(np.flatnonzero(near))}"
            )
        if len(rects) > 1:
            found += _jumps(rects.astype(np.float64))
        return found


def _jumps(rects: NDArray[np.float64]) -> list[str]:
    sides = (rects[:, 2:] - rects[:, :2]).max(axis=1)
    smaller = np.minimum(sides[1:], sides[:-1])
    grown = np.abs(np.diff(sides)) / smaller
    moved = np.abs(np.diff((rects[:, :2] + rects[:, 2:]) / 2, axis=0)).max(axis=1) / smaller
    found = []
    for share, what in ((grown, "changes its size"), (moved, "moves")):
        if (share > JUMP).any():
            found.append(
                f"jumps: the rectangle {what} by up to {100 * share.max():.0f}% of its side from"
                f" one frame to the next, at {_frames(np.flatnonzero(share > JUMP) + 1)}"
            )
    return found


def _frames(which: Sequence[int] | NDArray[np.generic]) -> str:
    numbers = np.asarray(which)
    shown = ", ".join(str(int(n)) for n in numbers[:5])
    if len(numbers) == 1:
        return f"frame {shown}"
    return f"{len(numbers)} frames ({shown}{', …' if len(numbers) > 5 else ''})"


def settled(given: NDArray[np.float64], width: int, height: int, where: str) -> Track:
    """Rectangles that can be used, of those that a package has.

    They are truncated to whole pixels and cut at the frame's edge, as slices of an array are. A
    frame without one gets it from the frames around it, in equal steps.

    Args:
        given: N x 4, x1, y1, x2, y2; NaN where there is none.
        where: the file they are from, for errors.

    Raises:
        AvatarImportError: more than a tenth of the frames have none.
    """
    whole = np.where(np.abs(given) <= FARTHEST, given, np.nan)
    inside = np.clip(np.trunc(whole), 0, [width, height] * 2)
    room = inside[:, 2:] - inside[:, :2]
    good = (np.nan_to_num(room, nan=-1.0) >= LEAST_SIDE).all(axis=1)
    lost = np.flatnonzero(~good)
    if len(lost) > MOST_LOST * len(given):
        example = ", ".join(f"{v:g}" for v in given[lost[0]])
        raise AvatarImportError(
            f"{where}: {len(lost)} of {len(given)} frames have no rectangle with room in the"
            f" {width} x {height} frame (frame {lost[0]}: {example}); expected x1, y1, x2, y2 in"
            " pixels, x1 < x2 and y1 < y2"
        )
    frames = np.arange(len(given))
    filled = np.trunc(whole)
    for column in range(4):
        filled[lost, column] = np.trunc(np.interp(lost, frames[good], filled[good, column]))
    wanted = [Rect.from_corners(*(int(v) for v in row)) for row in filled]
    return Track([clipped(r, width, height) for r in wanted], wanted, [int(i) for i in lost])
