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
from PIL import Image

from lipsync_fast.arrays import U8
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.manifest import FrameJpeg, Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import Coded, Encode
from lipsync_fast.engine.caches import AHEAD_SHARE, ByteLru, Key
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import scaled_size
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet

VARIANT_CACHE_BYTES = 256 << 20
NO_MARKERS = 65_535
"""A restart interval that small pictures do not reach."""
UNIT = 16
"""Side of a minimum coded unit in pixels, with 4:2:0."""
_MARKERS = [bytes([0xFF, 0xD0 + k]) for k in range(8)]


@dataclass(frozen=True, slots=True)
class Variant:
    """How a client wants frames: JPEG quality 1..100, and no wider than ``max_width``."""

    quality: int
    max_width: int | None = None


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
        return _resized(image, self.cut.box.size, self.scaled_from)


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


def _resized(
    image: U8, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> U8:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture that was encoded once, to put parts into.

    Attributes:
        jpeg: all of it, with the XMP.
        how: it was encoded, and parts are to be.
        place: of the parts.
        kept: its bytes around the runs of ``place.cut``, one piece more than there are runs.
    """

    jpeg: bytes
    how: FrameJpeg
    place: Place
    kept: tuple[memoryview, ...]

    @classmethod
    def of(cls, jpeg: bytes, how: FrameJpeg, place: Place) -> Encoded:
        """Take a whole JPEG apart."""
        where = place.cut
        if where is None:
            return cls(jpeg, how, place, ())
        offsets = segment_offsets(jpeg)
        if len(offsets) != where.count + 1:
            raise AssertionError(f"{len(offsets) - 1} segments, expected {where.count}")
        view, at, kept = memoryview(jpeg), 0, []
        for first in where.firsts:
            kept.append(view[at : offsets[first]])
            at = int(offsets[first + where.run])
        return cls(jpeg, how, place, (*kept, view[at:]))

    def with_part(self, image: U8) -> bytes:
        """The picture's JPEG, given the pixels of ``place.part``."""
        where = self.place.cut
        if where is None:
            return self.jpeg
        part = encode_frame(self.place.pixels(image), self.how)
        run, count, firsts = where.run, where.count, where.firsts
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

    def with_segments(self, coded: Coded) -> bytes:
        """As ``with_part``, given what ``place.encode`` asks for.

        Raises:
            ValueError: it has another number of segments.
        """
        where = self.place.cut
        if where is None:
            return self.jpeg
        run, data, offsets = where.run, coded.data, coded.offsets
        if len(offsets) != run * len(where.firsts) + 1:
            raise ValueError(f"{len(offsets) - 1} segments, expected {run * len(where.firsts)}")
        pieces: list[bytes | memoryview] = [self.kept[0]]
        at = 0
        for first, after in zip(where.firsts, self.kept[1:], strict=True):
            for number in range(first, first + run):
                pieces.append(data[offsets[at] : offsets[at + 1]])
                pieces.append(_MARKERS[number & 7])
                at += 1
            if first + run == where.count:
                pieces.pop()  # the frame's end follows, no marker
            pieces.append(after)
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

    def part(self, package: AvatarPackage, index: int, variant: Variant) -> Rect:
        """The part of a composed frame that ``frame`` wants."""
        return self.place(package, index, variant).part

    def place(self, package: AvatarPackage, index: int, variant: Variant) -> Place:
        """That part, and what is encoded of it."""
        size = scaled_size(package.frame_size, variant.max_width)
        found = self._spoken.find((package, index, variant.quality, size))
        return found.place if found else Place.of(package, index, size)

    def has(self, package: AvatarPackage, index: int, variant: Variant) -> bool:
        """Whether ``frame`` has only a part to encode, or to put in."""
        size = scaled_size(package.frame_size, variant.max_width)
        return self._spoken.find((package, index, variant.quality, size)) is not None

    def frame(
        self, package: AvatarPackage, index: int, variant: Variant, image: U8 | Coded
    ) -> bytes:
        """A composed frame: at its full size, the bytes of encoding all of it.

        A smaller one is what scaling and encoding all of it gives, but for a grey level by which
        the scaling of a part may round otherwise.

        Args:
            package, index: of the avatar's frame that lies under it.
            variant: quality and width.
            image: the pixels of ``part``, uint8 RGB; or what ``place`` says is encoded of it, coded
                already.
        """
        encoded = self._encoded(package, index, variant)
        if isinstance(image, Coded):
            return encoded.with_segments(image)
        return encoded.with_part(image)

    def prepare(self, package: AvatarPackage, index: int) -> bool:
        """Encode what all frames over one of the avatar's have in common, at its own quality.

        Returns:
            False where there is no room to keep it: then nothing is done.
        """
        spoken, needed = self._spoken, len(package.frame_jpeg(index))
        if spoken.used + needed > AHEAD_SHARE * spoken.limit:
            return False
        self._encoded(package, index, Variant(package.manifest.jpeg.quality))
        return True

    def _encoded(self, package: AvatarPackage, index: int, variant: Variant) -> Encoded:
        size = scaled_size(package.frame_size, variant.max_width)

        def make() -> tuple[Encoded, int]:
            jpeg = self._whole(package.manifest, variant, silent(package, index))
            how = how_coded(package.manifest, variant.quality)
            return Encoded.of(jpeg, how, Place.of(package, index, size)), len(jpeg)

        return self._spoken.get((package, index, variant.quality, size), make)

    def original(self, package: AvatarPackage, index: int, variant: Variant) -> bytes:
        """The avatar's own frame; encoded once, where it is not in the package as it is wanted."""
        m = package.manifest
        size = scaled_size(package.frame_size, variant.max_width)
        if size == package.frame_size and variant.quality == m.jpeg.quality:
            return jpeg_with_xmp(package.frame_bytes(index), xmp_packet(m.synthetic))
        key = (package, index, "frame", variant.quality, size)
        return self._once(key, lambda: self._whole(m, variant, package.picture(index)))

    def alone(self, package: AvatarPackage, image: U8, quality: int) -> bytes:
        """A part of a frame by itself: the face rectangle, or a generated square."""
        return _alone(package.manifest, quality, image)

    def shown(self, package: AvatarPackage, index: int, max_width: int | None) -> U8:
        """The pixels of the avatar's own frame as it is sent."""
        picture = package.picture(index)
        size = scaled_size(package.frame_size, max_width)
        return picture if size == package.frame_size else _resized(picture, size)

    def own_mouth(self, package: AvatarPackage, index: int, quality: int) -> bytes:
        """The face rectangle of the avatar's own frame."""

        def make() -> bytes:
            face = package.picture(index)[package.rect(index).slices]
            return self.alone(package, face, quality)

        return self._once((package, index, "mouth", quality), make)

    def own_region(self, package: AvatarPackage, index: int, quality: int) -> bytes:
        """What the avatar's own frame has in place of the generated square."""
        key, rule = (package, index, "region", quality), package.manifest.crop_rule
        return self._once(
            key, lambda: self.alone(package, rule.inner(package.crop(index)), quality)
        )

    def avatar_bytes(self, package: AvatarPackage) -> int:
        """Bytes that the caches hold of an avatar."""
        return self._spoken.used_by(package) + self._own.used_by(package)

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
            image = _resized(image, size)
        jpeg = encode_frame(image, how_coded(m, variant.quality))
        return jpeg_with_xmp(jpeg, xmp_packet(m.synthetic))


def how_coded(m: Manifest, quality: int) -> FrameJpeg:
    """How an avatar's frames are encoded at a quality."""
    return msgspec.structs.replace(m.jpeg, quality=quality)


def _alone(m: Manifest, quality: int, image: U8) -> bytes:
    """A small picture, all of it new each time: markers would be of no use."""
    how = msgspec.structs.replace(m.jpeg, quality=quality, restart_interval=NO_MARKERS)
    return jpeg_with_xmp(encode_frame(image, how), xmp_packet(m.synthetic))
