# SPDX-License-Identifier: Apache-2.0
"""What of a frame speech can change, and which restart segments of its JPEG hold that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lipsync_fast.arrays import U8
from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import Encode
from lipsync_fast.geometry import Rect

NO_MARKERS = 65_535
"""A restart interval that small pictures do not reach."""
UNIT = 16
"""Side of a minimum coded unit in pixels, with 4:2:0."""


# ---------------------------------------------------------------- what can differ
def reached(first: int, end: int, source: int, target: int, reach: int = 2) -> tuple[int, int]:
    """Which outputs of a resize from ``source`` to ``target`` pixels see some inputs.

    Args:
        first, end: the inputs first .. end - 1.
        reach: inputs beyond an output's place that it sees; 2 for a bicubic resize, 1 bilinear.

    Returns:
        The first output and the one after the last. One input more on either side is counted, so
        that no rounding of positions matters.
    """
    at = np.floor((np.arange(target) + 0.5) * source / target - 0.5)
    seen = np.flatnonzero((at + reach + 1 >= first) & (at - reach < end))
    return (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)


def changing(package: AvatarPackage, index: int) -> Rect | None:
    """The part of a frame that what is said can change; None when nothing can."""
    m = package.manifest
    rect = package.rect(index)
    (left, top), (_, height, width), reach = m.corner, m.made, m.crop_rule.reach
    a, b = reached(left, left + width, m.crop, rect.width, reach)
    c, d = reached(top, top + height, m.crop, rect.height, reach)
    if a == b or c == d:  # a face so small that no pixel of it sees the window
        return None
    keep = package.mask(index)
    if keep is not None:
        rows, columns = np.nonzero(keep[c:d, a:b] == 0)
        if len(rows) == 0:
            return None
        c, d = c + int(rows.min()), c + int(rows.max()) + 1
        a, b = a + int(columns.min()), a + int(columns.max()) + 1
    return Rect(rect.x + a, rect.y + c, b - a, d - c)


def silent(package: AvatarPackage, index: int) -> U8:
    """A frame with the avatar's own mouth pasted in as if it had been generated."""
    frame, rule = package.picture(index).copy(), package.manifest.crop_rule
    crop, corner = package.crop(index, frame), (rule.border, rule.border)
    rule.compose(crop, rule.inner(crop), corner, frame, package.rect(index), package.mask(index))
    return frame


# ---------------------------------------------------------------- where it lies
@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a frame that consists of whole restart segments.

    Attributes:
        box: in pixels; its sides are those of units, or the frame's.
        firsts: of each run of segments, the number of its first one in the frame.
        run: segments in each run.
        count: segments of the frame.
    """

    box: Rect
    firsts: tuple[int, ...]
    run: int
    count: int


def cut(size: tuple[int, int], interval: int, box: Rect) -> Cut:
    """The smallest cut around a box of a frame of that size.

    Where the segments do not end with the rows, it takes rows of units as a whole, as many as it
    needs to begin and end with a segment; all of the frame, if it must be.
    """
    across, down = (math.ceil(side / UNIT) for side in size)
    x1, y1, x2, y2 = box.corners
    top, bottom = y1 // UNIT, math.ceil(y2 / UNIT)
    count = math.ceil(across * down / interval)
    if across % interval == 0:
        first = x1 // UNIT // interval
        run = math.ceil(x2 / UNIT / interval) - first
        per_row = across // interval
        left, right = first * interval * UNIT, min((first + run) * interval * UNIT, size[0])
        firsts = tuple(row * per_row + first for row in range(top, bottom))
    else:
        step = interval // math.gcd(across, interval)  # rows after which a segment ends with one
        top, bottom = top // step * step, min(math.ceil(bottom / step) * step, down)
        left, right = 0, size[0]
        firsts = (top * across // interval,)
        run = math.ceil((bottom - top) * across / interval)
    around = Rect.from_corners(left, top * UNIT, right, min(bottom * UNIT, size[1]))
    return Cut(around, firsts, run, count)


@dataclass(frozen=True, slots=True)
class Place:
    """What of an avatar's frame changes, and what is done about it.

    Attributes:
        part: the pixels of the composed frame that are needed; they hold the face rectangle.
        cut: what is encoded, in the picture that is sent; None when nothing ever changes.
        inside: where ``cut`` lies in ``part``, when the picture is as large as the frame.
        scaled_from: the same when it is smaller: x1, y1, x2, y2 in pixels and their parts.
    """

    part: Rect
    cut: Cut | None = None
    inside: Rect | None = None
    scaled_from: tuple[float, float, float, float] | None = None

    @classmethod
    def of(cls, package: AvatarPackage, index: int, size: tuple[int, int]) -> Place:
        """Where a frame changes when it is sent at a size (width, height)."""
        rect, changes = package.rect(index), changing(package, index)
        if changes is None:
            return cls(rect)
        box = _seen_at(changes, package.frame_size, size)
        where = cut(size, package.manifest.jpeg.restart_interval, box)
        return cls._around(rect, where, package.frame_size, size)

    @classmethod
    def of_face(cls, package: AvatarPackage, index: int, size: tuple[int, int]) -> Place:
        """The same of the whole face, at even pixels: outside of it, a frame is the avatar's own
        (``package.picture``). It has no segments."""
        rect = package.rect(index)
        x1, y1, x2, y2 = _seen_at(rect, package.frame_size, size).corners
        box = Rect.from_corners(
            x1 - x1 % 2, y1 - y1 % 2, min(x2 + x2 % 2, size[0]), min(y2 + y2 % 2, size[1])
        )
        return cls._around(rect, Cut(box, (), 0, 0), package.frame_size, size)

    @classmethod
    def _around(cls, rect: Rect, where: Cut, full: tuple[int, int], size: tuple[int, int]) -> Place:
        """What of a composed frame a cut needs."""
        scaled = size != full
        across, down = full[0] / size[0], full[1] / size[1]
        x1, y1, x2, y2 = where.box.corners
        a, b, c, d = x1 * across, y1 * down, x2 * across, y2 * down
        beyond = (2 * across + 1, 2 * down + 1) if scaled else (0, 0)
        left, top = min(rect.x, int(a - beyond[0])), min(rect.y, int(b - beyond[1]))
        right = max(rect.right, math.ceil(c + beyond[0]))
        bottom = max(rect.bottom, math.ceil(d + beyond[1]))
        left, top = max(0, left), max(0, top)
        right, bottom = min(full[0], right), min(full[1], bottom)
        part = Rect.from_corners(left, top, right, bottom)
        if not scaled:
            return cls(part, where, inside=where.box.seen_from(part))
        seen = a - left, b - top, min(c, right) - left, min(d, bottom) - top
        return cls(part, where, scaled_from=seen)

    def encode(self, how: FrameJpeg) -> Encode | None:
        """What a backend that encodes is to make of ``part``; None where it cannot."""
        if self.inside is None:
            return None
        return Encode(self.inside, how.quality, how.restart_interval)

    def pixels(self, image: U8) -> U8:
        """What is encoded, given the pixels of ``part``."""
        if self.inside is not None:
            return image[self.inside.slices]
        assert self.cut is not None
        return resized(image, self.cut.box.size, self.scaled_from)


def _seen_at(box: Rect, full: tuple[int, int], size: tuple[int, int]) -> Rect:
    """Which pixels of a frame that is sent at a size see a part of it."""
    if size == full:
        return box
    x1, y1, x2, y2 = box.corners
    # An output sees as far as the next one's middle; one more is counted.
    x1, x2 = _shrunk(x1, x2, full[0] / size[0], size[0])
    y1, y2 = _shrunk(y1, y2, full[1] / size[1], size[1])
    return Rect.from_corners(x1, y1, x2, y2)


def _shrunk(first: int, end: int, scale: float, size: int) -> tuple[int, int]:
    """Which of ``size`` outputs see the inputs first .. end - 1, with some to spare."""
    return max(0, math.floor(first / scale) - 2), min(size, math.ceil(end / scale) + 2)


def resized(
    image: U8, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> U8:
    """Pixels as they are sent at another size; of a part of them alone, where a box is given."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box))
