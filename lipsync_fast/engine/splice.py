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

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from lipsync_fast.arrays import U8
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.manifest import FrameJpeg, Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import Coded
from lipsync_fast.engine.caches import AHEAD_SHARE, ByteLru, Key
from lipsync_fast.engine.changes import NO_MARKERS, Place, resized, silent
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import scaled_size
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet

VARIANT_CACHE_BYTES = 256 << 20
_MARKERS = [bytes([0xFF, 0xD0 + k]) for k in range(8)]


@dataclass(frozen=True, slots=True)
class Variant:
    """How a client wants frames: JPEG quality 1..100, and no wider than ``max_width``."""

    quality: int
    max_width: int | None = None


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
        return picture if size == package.frame_size else resized(picture, size)

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
            image = resized(image, size)
        jpeg = encode_frame(image, how_coded(m, variant.quality))
        return jpeg_with_xmp(jpeg, xmp_packet(m.synthetic))


def how_coded(m: Manifest, quality: int) -> FrameJpeg:
    """How an avatar's frames are encoded at a quality."""
    return msgspec.structs.replace(m.jpeg, quality=quality)


def _alone(m: Manifest, quality: int, image: U8) -> bytes:
    """A small picture, all of it new each time: markers would be of no use."""
    how = msgspec.structs.replace(m.jpeg, quality=quality, restart_interval=NO_MARKERS)
    return jpeg_with_xmp(encode_frame(image, how), xmp_packet(m.synthetic))
