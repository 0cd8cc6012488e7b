# SPDX-License-Identifier: Apache-2.0
"""Frames as JPEGs with restart markers, so that parts of one can be replaced without the rest.

With standard Huffman tables and a marker every N minimum coded units, the scan is a list of
segments that are coded independently of each other.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.errors import AvatarFormatError, words_of
from lipsync_fast.untrusted import limits


def encode_frame(rgb: NDArray[np.uint8], how: FrameJpeg) -> bytes:
    """Encode H x W x 3 uint8 RGB, 4:2:0, with a restart marker every ``restart_interval`` units."""
    return encode_image(Image.fromarray(rgb), how)


def encode_image(image: Image.Image, how: FrameJpeg) -> bytes:
    """As ``encode_frame``, of an RGB picture of Pillow's."""
    out = io.BytesIO()
    image.save(
        out,
        "JPEG",
        quality=how.quality,
        subsampling=2,
        restart_marker_blocks=how.restart_interval,
        optimize=False,
        progressive=False,
    )
    return out.getvalue()


def segment_offsets(jpeg: bytes | memoryview) -> NDArray[np.uint32]:
    """Where each restart segment's coded bytes begin, and where the last one ends (n + 1 numbers).

    Segment k's bytes are jpeg[offsets[k] : offsets[k + 1]] less the two marker bytes at their end
    (but for the last one, which ends where the end-of-image marker stands).

    Raises:
        AvatarFormatError: not a baseline JPEG of one scan.
    """
    data = np.frombuffer(jpeg, np.uint8)
    raw = bytes(jpeg)
    if len(raw) < 4 or raw[:2] != b"\xff\xd8":
        raise AvatarFormatError("not a JPEG")
    at = 2
    while True:
        if at + 4 > len(raw) or raw[at] != 0xFF:
            raise AvatarFormatError("damaged JPEG header")
        marker, length = raw[at + 1], int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker in (0xC1, 0xC2, 0xC3, 0xD9) or length < 2:
            raise AvatarFormatError("not a baseline JPEG")
        at += 2 + length
        if marker == 0xDA:
            break
    if at >= len(raw):
        raise AvatarFormatError("damaged JPEG: no picture data")
    marks = np.flatnonzero(data[at:-1] == 0xFF) + at
    kinds = data[marks + 1]
    restarts = marks[(kinds >= 0xD0) & (kinds <= 0xD7)]
    ends = marks[kinds == 0xD9]
    if len(ends) != 1 or np.any((kinds != 0) & (kinds < 0xD0)) or np.any(kinds > 0xD9):
        raise AvatarFormatError("damaged JPEG: expected one scan and its end")
    return np.concatenate([[at], restarts + 2, ends]).astype(np.uint32)


def decode(data: bytes | memoryview, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG of a known (width, height) to H x W x 3 uint8 RGB.

    Raises:
        AvatarFormatError: damaged, another format, or another size (checked before decoding).
    """
    with _opened(data, size, where) as image:
        return np.asarray(image.convert("RGB"))


def check_header(data: bytes | memoryview, size: tuple[int, int], where: str) -> None:
    """What ``decode`` checks before it decodes.

    Raises:
        AvatarFormatError: not a JPEG or PNG picture, or of another size.
    """
    with _opened(data, size, where):
        pass


@contextlib.contextmanager
def _opened(data: bytes | memoryview, size: tuple[int, int], where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.size != size:
                raise AvatarFormatError(f"{where}: picture of {image.size}, expected {size}")
            if image.format == "JPEG" and bytes(data).count(b"\xff\xda") > limits.SCANS:
                raise AvatarFormatError(f"{where}: picture of more than {limits.SCANS} scans")
            yield image
    except UnidentifiedImageError:  # its own words name an object in memory
        raise AvatarFormatError(f"{where}: is not a JPEG or PNG picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise AvatarFormatError(f"{where}: picture cannot be decoded ({words_of(error)})") from None
