# SPDX-License-Identifier: Apache-2.0
"""Write what avatar packages and prepared folders have in common; frames.py reads it."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.jpeg import segment_offsets
from lipsync_fast.avatars.manifest import FileEntry
from lipsync_fast.avatars.storage import write_array
from lipsync_fast.geometry import Rect

THUMBNAIL_SIDE = 256
_CHUNK = 1 << 20


class PileWriter:
    """A .bin member under construction: byte strings one behind the other, and their offsets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._offsets = [0]

    def add(self, data: bytes) -> None:
        """Append a byte string."""
        self._file.write(data)
        self._offsets.append(self._offsets[-1] + len(data))

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._offsets[-1]

    def write_index(self) -> None:
        """Close it and write the offsets beside it, as .npy."""
        self.close()
        index = write_array(np.array(self._offsets, np.uint64))
        self._path.with_suffix(".npy").write_bytes(index)

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._file.close()


class FrameWriter:
    """frames.bin with its index, and segments.npy.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._pile = folder, PileWriter(folder / "frames.bin")
        self._segments: list[NDArray[np.uint32]] = []

    def add(self, jpeg: bytes) -> None:
        """Append a frame's JPEG, with restart markers."""
        self._pile.add(jpeg)
        self._segments.append(segment_offsets(jpeg))

    def write_index(self) -> None:
        """Close it and write both indexes."""
        self._pile.write_index()
        segments = np.stack(self._segments) if self._segments else np.zeros((0, 2), np.uint32)
        (self._folder / "segments.npy").write_bytes(write_array(segments))

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._pile.close()


def packed_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask's bits as a member of masks.bin."""
    return zlib.compress(np.packbits(mask.ravel()).tobytes(), 9)


def file_entry(path: Path) -> FileEntry:
    """A member's size and checksum."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return FileEntry(size=path.stat().st_size, sha256=digest.hexdigest())


def thumbnail(picture: NDArray[np.uint8], rect: Rect) -> bytes:
    """A square around the face as a small JPEG."""
    x1, y1, x2, y2 = rect.corners
    side = min(picture.shape[0], picture.shape[1], int(1.8 * max(rect.size)))
    left = min(max(0, (x1 + x2 - side) // 2), picture.shape[1] - side)
    top = min(max(0, (y1 + y2 - side) // 2 - side // 10), picture.shape[0] - side)
    image = Image.fromarray(picture[top : top + side, left : left + side])
    out = io.BytesIO()
    image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS).save(
        out, "JPEG", quality=85
    )
    return out.getvalue()


def replace_with(made: Path, dest: Path, aside: Path) -> None:
    """Give a finished file or folder the name of what is there, which goes ``aside``.

    Raises:
        OSError: it cannot be; then what was there is there again.
    """
    os.rename(dest, aside)
    try:
        os.rename(made, dest)
    except OSError:
        os.rename(aside, dest)
        raise
