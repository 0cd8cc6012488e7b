# SPDX-License-Identifier: Apache-2.0
"""An avatar as a teacher: what it makes of its own frames and of any sound, as it makes it live.

    frame of its loop, sound -> the CPU backend -> a window of the region, as pixels
                                                -> the same in the crop, in the student's size

It is asked for as much as is wanted: it never tires, so nothing is learnt twice from one picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.arrays import F32, U8
from lipsync_fast.audio.windows import FEATURE_SIZE
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.closing import Closing
from lipsync_fast.engine.backends.base import RegionJob
from lipsync_fast.engine.backends.cpu import CpuBackend
from lipsync_fast.families.synctalk2d import REGION_BORDER, VECTORS
from lipsync_fast.geometry import Rect
from lipsync_fast.train.data import Crops

_GREY = 255.0
HALF_LEVEL = 0.5
"""A made pixel is cut down to a whole grey level, so what was made was this much more."""


class Teacher(Closing):
    """An avatar's networks, at work.

    Args:
        package: of the family synctalk2d; closed by the caller.
        threads: of the processor.

    Attributes:
        window: what of its region it makes.

    Raises:
        AvatarFormatError: its networks do not fit its manifest.
    """

    def __init__(self, package: AvatarPackage, threads: int) -> None:
        self.package = package
        self.region = package.manifest.region
        self.window = package.manifest.window_rect or Rect(0, 0, self.region, self.region)
        self._backend = CpuBackend(threads, live=True)
        try:
            self._avatar = self._backend.load(package)
        except BaseException:
            self._backend.close()
            raise
        self.crops = Crops(_Frames(package), self.region)

    def close(self) -> None:
        """Stop its threads."""
        self._backend.close()

    def features(self, windows: F32) -> F32:
        """What its audio encoder hears: mel windows N x 16 x 80 to N x 512."""
        return self._backend.features(self._avatar, windows)

    def made(self, frames: Sequence[int], blocks: Sequence[F32]) -> list[U8]:
        """Its windows for as many frames as sounds (each 32 x 16 x 16): H x W x 3 uint8 RGB."""
        jobs = [
            RegionJob(self._avatar, frame, block.reshape(VECTORS, FEATURE_SIZE))
            for frame, block in zip(frames, blocks, strict=True)
        ]
        return self._backend.regions(jobs)

    def laid_in(self, frame: int, made: U8) -> U8:
        """One of its windows in its place in the frame's crop, C x C x 3."""
        crop, box = self.crops.crop(frame).copy(), self.window
        top, left = box.y + REGION_BORDER, box.x + REGION_BORDER
        crop[top : top + box.height, left : left + box.width] = made
        return crop


class Seat:
    """A student's place: its size, and what it sees and is to make there.

    Args:
        teacher: whose.
        region: of the student, no larger than the teacher's.

    Attributes:
        window: the teacher's window in the student's region, grown to whole pixels.
        crops: of the avatar's frames in the student's size.
    """

    def __init__(self, teacher: Teacher, region: int) -> None:
        self.teacher, self.region = teacher, region
        self.window = window_in(teacher.window, teacher.region, region)
        self.side = region + 2 * REGION_BORDER
        self._package = teacher.package
        self._rule = teacher.package.manifest.crop_rule
        same = region == teacher.region
        self.crops = teacher.crops if same else Crops(_Frames(teacher.package), region)

    def image(self, frame: int) -> F32:
        """What a student sees of a frame: 6 x R x R, BGR in 0..1."""
        return self._rule.image_input(self.crops.crop(frame))

    def target(self, frame: int, made: U8, part: Rect) -> F32:
        """What a teacher's window is in a part of the student's region: 3 x H x W BGR in 0..1."""
        crop = self.teacher.laid_in(frame, made)
        if len(crop) != self.side:
            crop = self._rule.resized(crop, self.side, self.side)
        inner = self._rule.inner(crop)[part.slices]
        planes = (inner[..., ::-1].transpose(2, 0, 1) + np.float32(HALF_LEVEL)) / np.float32(_GREY)
        return np.ascontiguousarray(planes, np.float32)

    def as_taught(self, frame: int, made: U8) -> U8:
        """A student's window as it compares with one of its teacher's: in the teacher's size."""
        if self.region == self.teacher.region:
            return made
        crop, box = self.crops.crop(frame).copy(), self.window
        top, left = box.y + REGION_BORDER, box.x + REGION_BORDER
        crop[top : top + box.height, left : left + box.width] = made
        side = self.teacher.region + 2 * REGION_BORDER
        return self._rule.inner(self._rule.resized(crop, side, side))[self.teacher.window.slices]

    def shown(self, frame: int) -> F32:
        """How much of each pixel of the window is shown, and is not the frame's own: H x W."""
        box = self.window
        keep = self._package.mask(frame)
        if keep is None:
            return np.ones((box.height, box.width), np.float32)
        image = Image.fromarray(255 - 255 * keep).resize(
            (self.side, self.side), Image.Resampling.BOX
        )
        inner: NDArray[np.uint8] = self._rule.inner(np.asarray(image))
        return inner[box.slices].astype(np.float32) / np.float32(_GREY)


class _Frames:
    """An avatar's frames, as ``data.Pictures``."""

    def __init__(self, package: AvatarPackage) -> None:
        self._package = package

    def __len__(self) -> int:
        return self._package.manifest.frame_count

    def crop(self, index: int, side: int) -> U8:
        """The face crop of a frame, side x side x 3."""
        if side == self._package.manifest.crop:
            return self._package.crop(index)
        picture = self._package.picture(index)[self._package.rect(index).slices]
        return self._package.manifest.crop_rule.resized(picture, side, side)


def window_in(window: Rect, region: int, other: int) -> Rect:
    """A window of a region of ``region`` pixels in one of ``other``, grown to whole pixels.

    Crops have a border of the same width in either.
    """
    if region == other:
        return window
    by = (other + 2 * REGION_BORDER) / (region + 2 * REGION_BORDER)

    def at(value: int) -> float:
        return (value + REGION_BORDER) * by - REGION_BORDER

    left, top, right, bottom = window.corners
    low = [max(0, int(np.floor(at(v)))) for v in (left, top)]
    high = [min(other, int(np.ceil(at(v)))) for v in (right, bottom)]
    return Rect.from_corners(low[0], low[1], high[0], high[1])
