# SPDX-License-Identifier: Apache-2.0
"""An open avatar package: everything about an avatar that does not depend on the speech.

Members (all but the manifest may be mapped and shared between processes):

    manifest.json       what it is (manifest.py)
    manifest.sig        optional: who vouches for it (signing.py)
    frames.bin, .npy    frames as JPEGs one after the other; N + 1 offsets, uint64
    segments.npy        N x (S + 1) uint32: the restart segments within each frame's JPEG
    rects.npy           N x 4 int32: the face crop x1, y1, x2, y2 in the frame
    regions.npy         optional, N x C x C x 3 uint8: the crops, resized to C (manifest.crop)
    masks.bin, .npy     optional: per frame, packed bits (zlib), set where the original stays
    pictures.bin, .npy  optional: the frames' source files (JPEG or PNG), pixel for pixel
    models/*.onnx       audio_encoder, image, decoder
    thumbnail.jpg
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.jpeg import decode
from lipsync_fast.avatars.manifest import FORMAT, FORMAT_VERSION, Manifest
from lipsync_fast.avatars.storage import (
    MANIFEST,
    SIGNATURE,
    Storage,
    check_rects,
    check_sizes,
    checked_offsets,
    read_array,
    unpacked_mask,
)
from lipsync_fast.errors import AvatarError, AvatarFormatError, AvatarVersionError
from lipsync_fast.geometry import Rect
from lipsync_fast.untrusted import limits

MODELS = ("audio_encoder", "image", "decoder")
_PIECE = 8 << 20
_ROWS = 4096
"""Of an index that are looked at together: an index that lies from its start on is not read."""


class _Head(msgspec.Struct):
    format: str = ""
    format_version: int = 0


def read_manifest(data: memoryview, where: str) -> Manifest:
    """Parse and check a manifest.

    Raises:
        AvatarVersionError: written by a newer version.
        AvatarFormatError: not a manifest.
    """
    if len(data) > limits.MANIFEST_BYTES:
        raise AvatarFormatError(f"{where}: the manifest has {len(data)} bytes, more than 1 MiB")
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != FORMAT:
            raise AvatarFormatError(f"{where}: not an avatar package (format {head.format[:40]!r})")
        if head.format_version > FORMAT_VERSION:
            raise AvatarVersionError(
                f"{where}: package format {head.format_version} is newer than the"
                f" {FORMAT_VERSION} that this version reads; update lipsync-fast"
            )
        if head.format_version < 1:
            raise AvatarFormatError(f"{where}: there is no package format {head.format_version}")
        manifest = msgspec.json.decode(data, type=Manifest)
        json.loads(bytes(data), object_pairs_hook=_no_key_twice)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AvatarFormatError(f"{where}: the manifest cannot be read: {reason}") from None
    return manifest


def _no_key_twice(pairs: list[tuple[str, object]]) -> None:
    """Refuse what one reader takes for this and another one for that."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"{key[:80]!r} is there twice")
        seen.add(key)


class AvatarPackage:
    """A package, memory-mapped; opening reads its manifest and indexes and copies nothing.

    Pictures are H x W x 3 uint8 RGB. A frame's index must be in [0, manifest.frame_count).
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.path = storage.path
        self._listed = {MANIFEST}
        self.manifest = m = read_manifest(self.member(MANIFEST), str(self.path))
        self._listed.update(m.files)
        check_sizes(storage, {name: entry.size for name, entry in m.files.items()})
        self._frames = self._blobs("frames")
        self._segments = self._array("segments.npy", np.uint32, 2)
        self._rects = self._array("rects.npy", np.int32, 2)
        self._regions: NDArray[np.uint8] | None = None
        if "regions.npy" in m.files:
            regions = self._array("regions.npy", np.uint8, 4)
            if regions.shape[1:] != (m.crop, m.crop, 3):
                raise AvatarFormatError(f"{self.path}: regions.npy has shape {regions.shape}")
            self._regions = regions.view(np.uint8)
        self._masks = self._blobs("masks") if "masks.npy" in m.files else None
        self._pictures = self._blobs("pictures") if "pictures.npy" in m.files else None
        if self._rects.shape[1] != 4 or self._segments.shape[1] < 2:
            raise AvatarFormatError(f"{self.path}: an index has the wrong shape")
        self._check_segments()
        check_rects(self._rects, (m.frame_width, m.frame_height), str(self.path))
        self._networks: set[str] = set()
        for name in MODELS:
            self.model(name)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> AvatarPackage:
        """Open a folder or an .lsa file.

        Raises:
            AvatarNotFoundError: nothing there.
            AvatarVersionError: written by a newer version.
            AvatarFormatError: damaged, or not a package.
        """
        storage = Storage(Path(path))
        try:
            return cls(storage)
        except AvatarError:
            storage.close()
            raise

    def __enter__(self) -> AvatarPackage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the mapping; twice is harmless."""
        self._storage.close()

    def member(self, name: str) -> memoryview:
        """A member's bytes, mapped, without a copy.

        Raises:
            AvatarFormatError: the package has no such member, or its manifest does not list it.
        """
        data = self._storage.member(name)
        if data is None:
            raise AvatarFormatError(f"{self.path}: {name} is missing; not an avatar package?")
        if name not in self._listed:  # else verify() would vouch for what it has not read
            raise AvatarFormatError(f"{self.path}: {name} is not listed in the manifest")
        return data

    def member_names(self) -> list[str]:
        """The manifest and what it lists: all that can be read."""
        return sorted(self._listed)

    def signature(self) -> memoryview | None:
        """The bytes of ``manifest.sig``, where there is one."""
        return self._storage.member(SIGNATURE)

    def _array(self, name: str, dtype: type[np.generic], ndim: int) -> NDArray[np.int64]:
        array = read_array(self.member(name), f"{self.path}/{name}")
        if array.dtype != dtype or array.ndim != ndim or len(array) != self.manifest.frame_count:
            raise AvatarFormatError(
                f"{self.path}: {name} has shape {array.shape} of {array.dtype}, expected"
                f" {self.manifest.frame_count} rows of {np.dtype(dtype)}"
            )
        return array  # type: ignore[return-value]

    def _blobs(self, name: str) -> tuple[memoryview, NDArray[np.uint64]]:
        """A pile of byte strings and its checked offsets."""
        data = self.member(f"{name}.bin")
        index, count = self.member(f"{name}.npy"), self.manifest.frame_count
        return data, checked_offsets(index, len(data), count, str(self.path), name)

    def _check_segments(self) -> None:
        """Hold all restart segments against the frames that they are said to be in."""
        ends = self._frames[1]
        for first in range(0, len(self._segments), _ROWS):
            rows = self._segments[first : first + _ROWS]
            lengths = ends[first + 1 : first + 1 + len(rows)] - ends[first : first + len(rows)]
            wrong = np.any(rows[:, 1:] <= rows[:, :-1], axis=1) | (rows[:, -1] > lengths)
            if np.any(wrong):
                frame = first + int(np.argmax(wrong))
                raise AvatarFormatError(f"{self.path}: the segments of frame {frame} do not fit it")

    def _blob(self, pile: tuple[memoryview, NDArray[np.uint64]], index: int) -> memoryview:
        self._check(index)
        return pile[0][int(pile[1][index]) : int(pile[1][index + 1])]

    def _check(self, index: int) -> None:
        if not 0 <= index < self.manifest.frame_count:
            raise IndexError(f"frame {index} of {self.manifest.frame_count}")
        if not self._storage.intact():
            raise AvatarFormatError(f"{self.path}: has become shorter while it was in use")

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of a frame in pixels."""
        return self.manifest.frame_width, self.manifest.frame_height

    def frame_jpeg(self, index: int) -> memoryview:
        """The pre-encoded frame, with restart markers."""
        return self._blob(self._frames, index)

    def frame_segments(self, index: int) -> NDArray[np.uint32]:
        """Offsets of the restart segments in ``frame_jpeg(index)``, S + 1 numbers, checked."""
        self._check(index)
        offsets: NDArray[np.uint32] = self._segments[index].view(np.uint32)
        if np.any(offsets[1:] <= offsets[:-1]) or offsets[-1] > len(self.frame_jpeg(index)):
            raise AvatarFormatError(f"{self.path}: the segments of frame {index} do not fit it")
        return offsets

    def picture(self, index: int) -> NDArray[np.uint8]:
        """The frame's exact pixels (of its source file where kept, else of its JPEG)."""
        return decode(self.picture_file(index), self.frame_size, f"{self.path}: frame {index}")

    def picture_file(self, index: int) -> memoryview:
        """The JPEG or PNG that ``picture`` decodes."""
        return self._blob(self._pictures or self._frames, index)

    def rect(self, index: int) -> Rect:
        """The face crop, inside the frame."""
        self._check(index)
        return Rect.from_corners(*self._rects[index].tolist())

    def crop(
        self,
        index: int,
        picture: NDArray[np.uint8] | None = None,
        rect: Rect | None = None,
    ) -> NDArray[np.uint8]:
        """The face crop resized to C x C x 3, from ``regions.npy`` or from the picture.

        Args:
            index: the frame.
            picture: its pixels, where they are known already.
            rect: where the face lies in ``picture``, if that is only a part of the frame.
        """
        stored = self.stored_crop(index)
        if stored is not None:
            return stored
        where = rect or self.rect(index)
        whole = self.picture(index) if picture is None else picture
        side = self.manifest.crop
        return self.manifest.crop_rule.resized(whole[where.slices], side, side)

    def stored_crop(self, index: int) -> NDArray[np.uint8] | None:
        """The face crop where ``regions.npy`` holds it."""
        self._check(index)
        if self._regions is None:
            return None
        stored: NDArray[np.uint8] = self._regions[index]
        return stored

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Rectangle-sized uint8, 1 where the original pixel stays; None if all may change."""
        if self._masks is None:
            return None
        packed = self._blob(self._masks, index)
        if len(packed) == 0:
            return None
        return unpacked_mask(packed, self.rect(index).size, f"{self.path}: mask {index}")

    def model(self, name: str) -> memoryview:
        """The ONNX bytes of ``audio_encoder``, ``image`` or ``decoder``."""
        return self.member(f"models/{name}.onnx")

    def network(self, name: str) -> memoryview:
        """``model(name)``, once it was seen that nothing in it can hurt who runs it.

        Raises:
            AvatarFormatError: see ``models.onnx_check``.
        """
        from lipsync_fast.onnx_io.check import check_network  # who only looks needs none

        data = self.model(name)
        if name not in self._networks:
            self._check(0)
            check_network(data, f"{self.path}: {name}.onnx")
            self._networks.add(name)
        return data

    def verify(self) -> None:
        """Check every member against the manifest's checksums (reads all of it).

        Raises:
            AvatarFormatError: names the first member that differs.
        """
        for name, entry in self.manifest.files.items():
            data, digest = self.member(name), hashlib.sha256()
            for at in range(0, len(data), _PIECE):
                self._check(0)
                digest.update(data[at : at + _PIECE])
            if digest.hexdigest() != entry.sha256:
                raise AvatarFormatError(f"{self.path}: {name} is damaged (its checksum differs)")
