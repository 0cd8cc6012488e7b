# SPDX-License-Identifier: Apache-2.0
"""Pictures for clients, with nothing encoded that was encoded before.

A frame's JPEG is a list of restart segments that are coded by themselves. What differs between two
frames over the same avatar frame lies in a part of the face rectangle, so only the segments that
hold that part are encoded anew, and put into a JPEG of the frame that was encoded once:

    frame, encoded once      0 1 2 3 | 4 5 6 7 | …      segment k ends with marker RST(k mod 8)
    part, cut at segments          0 1     2 3          encoded by itself; markers renumbered
    sent                     0 1 0 1 | 4 5 2 3 | …      the bytes of encoding the whole frame

The frame encoded once is the avatar's own with its own mouth pasted in. The package's JPEG
(``AvatarPackage.frame_jpeg``) would not do: it is not what encoding its decoded pixels gives, and
the border of the face rectangle is resampled in every frame that speaks. It serves idle frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast import _native
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.manifest import REGION_BORDER, FrameJpeg, Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.caches import ByteLru, Key
from lipsync_fast.ipc.messages import scaled_size
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet

VARIANT_CACHE_BYTES = 128 << 20
NO_MARKERS = 65_535
"""A restart interval that small pictures do not reach."""
UNIT = 16
"""Side of a minimum coded unit in pixels, with 4:2:0."""
U8 = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How a client wants frames: JPEG quality 1..100, and no wider than ``max_width``."""

    quality: int
    max_width: int | None = None


# ---------------------------------------------------------------- what can differ
def reached(first: int, end: int, source: int, target: int) -> tuple[int, int]:
    """Which outputs of a bicubic resize from ``source`` to ``target`` pixels see some inputs.

    Args:
        first, end: the inputs first .. end - 1.

    Returns:
        The first output and the one after the last. One input more on either side is counted, so
        that no rounding of positions matters.
    """
    at = np.floor((np.arange(target) + 0.5) * source / target - 0.5)
    seen = np.flatnonzero((at + 3 >= first) & (at - 2 < end))
    return (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)


def changing(package: AvatarPackage, index: int) -> Box | None:
    """The part of a frame that what is said can change; None when nothing can."""
    m = package.manifest
    x1, y1, x2, y2 = package.rect(index)
    left, top, width, height = 0, 0, m.region, m.region
    if m.window is not None:
        left, top, width, height = m.window.x, m.window.y, m.window.width, m.window.height
    left, top = left + REGION_BORDER, top + REGION_BORDER
    a, b = reached(left, left + width, m.crop, x2 - x1)
    c, d = reached(top, top + height, m.crop, y2 - y1)
    if a == b or c == d:  # a face so small that no pixel of it sees the window
        return None
    keep = package.mask(index)
    if keep is not None:
        rows, columns = np.nonzero(keep[c:d, a:b] == 0)
        if len(rows) == 0:
            return None
        c, d = c + int(rows.min()), c + int(rows.max()) + 1
        a, b = a + int(columns.min()), a + int(columns.max()) + 1
    return x1 + a, y1 + c, x1 + b, y1 + d


def silent(package: AvatarPackage, index: int) -> U8:
    """A frame with the avatar's own mouth pasted in as if it had been generated."""
    frame = package.picture(index).copy()
    crop = package.crop(index, frame)
    inner = slice(REGION_BORDER, -REGION_BORDER)
    corner = (REGION_BORDER, REGION_BORDER)
    _native.compose(
        crop, crop[inner, inner], corner, frame, package.rect(index), package.mask(index)
    )
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

    box: Box
    firsts: tuple[int, ...]
    run: int
    count: int


def cut(size: tuple[int, int], interval: int, box: Box) -> Cut:
    """The smallest cut around a box of a frame of that size.

    Where the segments do not end with the rows, it takes rows of units as a whole, as many as it
    needs to begin and end with a segment; all of the frame, if it must be.
    """
    across, down = (math.ceil(side / UNIT) for side in size)
    x1, y1, x2, y2 = box
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
    return Cut((left, top * UNIT, right, min(bottom * UNIT, size[1])), firsts, run, count)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A frame that was encoded once, to put parts into.

    Attributes:
        jpeg: all of it, with the XMP.
        how: it was encoded, and parts are to be.
        part: of a frame that is needed to put in: it holds ``cut.box`` and the face rectangle.
        cut: what is put in; None when nothing ever changes.
        kept: its bytes around the runs of ``cut``, one piece more than there are runs.
    """

    jpeg: bytes
    how: FrameJpeg
    part: Box
    cut: Cut | None
    kept: tuple[memoryview, ...]

    @classmethod
    def of(cls, jpeg: bytes, how: FrameJpeg, part: Box, where: Cut | None) -> Encoded:
        """Take a whole JPEG apart."""
        if where is None:
            return cls(jpeg, how, part, None, ())
        offsets = segment_offsets(jpeg)
        if len(offsets) != where.count + 1:
            raise AssertionError(f"{len(offsets) - 1} segments, expected {where.count}")
        view, at, kept = memoryview(jpeg), 0, []
        for first in where.firsts:
            kept.append(view[at : offsets[first]])
            at = int(offsets[first + where.run])
        return cls(jpeg, how, part, where, (*kept, view[at:]))

    def with_part(self, image: U8) -> bytes:
        """The frame's JPEG, given the pixels of ``part``."""
        if self.cut is None:
            return self.jpeg
        left, top, right, bottom = self.cut.box
        x, y = self.part[:2]
        part = encode_frame(image[top - y : bottom - y, left - x : right - x], self.how)
        run, count, firsts = self.cut.run, self.cut.count, self.cut.firsts
        offsets = segment_offsets(part)
        if len(offsets) != run * len(firsts) + 1:
            raise AssertionError(f"{len(offsets) - 1} segments, expected {run * len(firsts)}")
        ends = offsets[1:].astype(np.int64)
        ends[-1] += 2  # the last one's marker comes where the end of the part's image was
        numbers = (np.array(firsts)[:, None] + np.arange(run)).ravel()
        data = np.frombuffer(bytearray(part), np.uint8)
        data[ends - 1] = 0xD0 + (numbers & 7)
        coded, pieces = memoryview(data.data), [self.kept[0]]
        at = int(offsets[0])
        for k, after in enumerate(self.kept[1:]):
            end = int(ends[(k + 1) * run - 1])
            last = numbers[(k + 1) * run - 1] == count - 1  # the frame's end follows, no marker
            pieces += [coded[at : end - 2 if last else end], after]
            at = end
        return b"".join(pieces)


# ---------------------------------------------------------------- the encoder
class FrameEncoder:
    """Encodes composed frames as JPEGs that say how they were made. For any thread.

    Args:
        limit: bytes of encoded frames that are kept.
    """

    def __init__(self, limit: int = VARIANT_CACHE_BYTES) -> None:
        self._spoken: ByteLru[Encoded] = ByteLru(limit // 2)
        self._own: ByteLru[bytes] = ByteLru(limit // 2)

    @property
    def cache_bytes(self) -> dict[str, int]:
        """Bytes held, by what they are."""
        return {"encoded frames": self._spoken.used, "encoded own pictures": self._own.used}

    def part(self, package: AvatarPackage, index: int, variant: Variant) -> Box | None:
        """The part of a composed frame that ``frame`` wants; None for all of it."""
        if _is_scaled(package, variant):
            return None
        found = self._spoken.find((package, index, variant.quality))
        return found.part if found else _place(package, index)[0]

    def frame(self, package: AvatarPackage, index: int, variant: Variant, image: U8) -> bytes:
        """A composed frame: the bytes of encoding all of it.

        Args:
            package, index: of the avatar's frame that lies under it.
            variant: quality and width.
            image: the pixels of ``part``, uint8 RGB.
        """
        if _is_scaled(package, variant):
            return self._whole(package.manifest, variant, image)
        return self._encoded(package, index, variant).with_part(image)

    def prepare(self, package: AvatarPackage, index: int) -> bool:
        """Encode what all frames over one of the avatar's have in common, at its own quality.

        Returns:
            False where there is no room to keep it: then nothing is done.
        """
        if self._spoken.used + 2 * len(package.frame_jpeg(index)) > self._spoken.limit:
            return False
        self._encoded(package, index, Variant(package.manifest.jpeg.quality))
        return True

    def _encoded(self, package: AvatarPackage, index: int, variant: Variant) -> Encoded:
        def make() -> tuple[Encoded, int]:
            jpeg = self._whole(package.manifest, variant, silent(package, index))
            how = _how(package.manifest, variant.quality)
            return Encoded.of(jpeg, how, *_place(package, index)), len(jpeg)

        return self._spoken.get((package, index, variant.quality), make)

    def original(self, package: AvatarPackage, index: int, variant: Variant) -> bytes:
        """The avatar's own frame; encoded once, where it is not in the package as it is wanted."""
        m = package.manifest
        size = scaled_size(package.frame_size, variant.max_width)
        if size == package.frame_size and variant.quality == m.jpeg.quality:
            jpeg = bytes(package.frame_jpeg(index))
            return jpeg_with_xmp(jpeg, xmp_packet(m.synthetic))
        key = (package, index, "frame", variant.quality, size)
        return self._once(key, lambda: self._whole(m, variant, package.picture(index)))

    def alone(self, package: AvatarPackage, image: U8, quality: int) -> bytes:
        """A part of a frame by itself: the face rectangle, or a generated square."""
        return _alone(package.manifest, quality, image)

    def own_mouth(self, package: AvatarPackage, index: int, quality: int) -> bytes:
        """The face rectangle of the avatar's own frame."""
        x1, y1, x2, y2 = package.rect(index)
        key = (package, index, "mouth", quality)
        return self._once(
            key, lambda: self.alone(package, package.picture(index)[y1:y2, x1:x2], quality)
        )

    def own_region(self, package: AvatarPackage, index: int, quality: int) -> bytes:
        """What the avatar's own frame has in place of the generated square."""
        inner = slice(REGION_BORDER, -REGION_BORDER)
        key = (package, index, "region", quality)
        return self._once(
            key, lambda: self.alone(package, package.crop(index)[inner, inner], quality)
        )

    def forget(self, package: AvatarPackage) -> None:
        """Drop what is kept of an avatar."""
        self._spoken.forget(package)
        self._own.forget(package)

    def _once(self, key: Key, make: Callable[[], bytes]) -> bytes:
        def sized() -> tuple[bytes, int]:
            jpeg = make()
            return jpeg, len(jpeg)

        return self._own.get(key, sized)

    @staticmethod
    def _whole(m: Manifest, variant: Variant, image: U8) -> bytes:
        size = scaled_size((image.shape[1], image.shape[0]), variant.max_width)
        if size != (image.shape[1], image.shape[0]):
            scaled = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
            image = np.asarray(scaled)
        jpeg = encode_frame(image, _how(m, variant.quality))
        return jpeg_with_xmp(jpeg, xmp_packet(m.synthetic))


def _is_scaled(package: AvatarPackage, variant: Variant) -> bool:
    return scaled_size(package.frame_size, variant.max_width) != package.frame_size


def _place(package: AvatarPackage, index: int) -> tuple[Box, Cut | None]:
    """What is needed of a composed frame, and what of that is encoded."""
    rect, changes = package.rect(index), changing(package, index)
    if changes is None:
        return rect, None
    where = cut(package.frame_size, package.manifest.jpeg.restart_interval, changes)
    (a, b, c, d), (e, f, g, h) = rect, where.box
    return (min(a, e), min(b, f), max(c, g), max(d, h)), where


def _how(m: Manifest, quality: int) -> FrameJpeg:
    return msgspec.structs.replace(m.jpeg, quality=quality)


def _alone(m: Manifest, quality: int, image: U8) -> bytes:
    """A small picture, all of it new each time: markers would be of no use."""
    how = msgspec.structs.replace(m.jpeg, quality=quality, restart_interval=NO_MARKERS)
    return jpeg_with_xmp(encode_frame(image, how), xmp_packet(m.synthetic))
