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

import json
import os
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.frames import MappedFrames
from lipsync_fast.avatars.jpeg import decode
from lipsync_fast.avatars.manifest import FORMAT, FORMAT_VERSION, Manifest
from lipsync_fast.avatars.storage import (
    MANIFEST,
    SIGNATURE,
    Storage,
    copied,
)
from lipsync_fast.errors import AvatarFormatError, AvatarVersionError
from lipsync_fast.geometry import Rect
from lipsync_fast.untrusted import limits

MODELS = ("audio_encoder", "image", "decoder")


class _Head(msgspec.Struct):
    format: str = ""
    format_version: int = 0


# Made here, as packages are read in threads: msgspec looks at a type's annotations when it first
# decodes one, and another thread that decodes one meanwhile ends the process.
_HEAD, _MANIFEST = msgspec.json.Decoder(_Head), msgspec.json.Decoder(Manifest)


def read_manifest(view: memoryview, where: str) -> Manifest:
    """Parse and check a manifest in a mapped file.

    Raises:
        AvatarVersionError: written by a newer version.
        AvatarFormatError: not a manifest.
    """
    if len(view) > limits.MANIFEST_BYTES:
        raise AvatarFormatError(f"{where}: the manifest has {len(view)} bytes, more than 1 MiB")
    data = copied(view, Path(where))
    try:
        head = _HEAD.decode(data)
        if head.format != FORMAT:
            raise AvatarFormatError(f"{where}: not an avatar package (format {head.format[:40]!r})")
        if head.format_version > FORMAT_VERSION:
            raise AvatarVersionError(
                f"{where}: package format {head.format_version} is newer than the"
                f" {FORMAT_VERSION} that this version reads; update lipsync-fast"
            )
        if head.format_version < 1:
            raise AvatarFormatError(f"{where}: there is no package format {head.format_version}")
        manifest = _MANIFEST.decode(data)
        json.loads(data, object_pairs_hook=_no_key_twice)
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


class AvatarPackage(MappedFrames[Manifest]):
    """A package, memory-mapped; opening reads its manifest and indexes and copies only those.

    Pictures are H x W x 3 uint8 RGB. A frame's index must be in [0, manifest.frame_count).
    """

    head = MANIFEST
    made_by = "; not an avatar package?"

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        m = self.manifest
        self._regions: NDArray[np.uint8] | None = None
        if "regions.npy" in m.files:
            regions = self._array("regions.npy", np.uint8, 4)
            if regions.shape[1:] != (m.crop, m.crop, 3):
                raise AvatarFormatError(f"{self.path}: regions.npy has shape {regions.shape}")
            self._regions = regions.view(np.uint8)
        self._pictures = self._pile("pictures") if "pictures.npy" in m.files else None
        self._networks: set[str] = set()
        for name in MODELS:
            self.model(name)

    def _read_head(self) -> Manifest:
        return read_manifest(self.member(MANIFEST), str(self.path))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> AvatarPackage:
        """Open a folder or an .lsa file.

        Raises:
            AvatarNotFoundError: nothing there.
            AvatarVersionError: written by a newer version.
            AvatarFormatError: damaged, or not a package.
        """
        return cls._opened(Path(path))

    def member_names(self) -> list[str]:
        """The manifest and what it lists: all that can be read."""
        return sorted({MANIFEST, *self.manifest.files})

    def signature(self) -> memoryview | None:
        """The bytes of ``manifest.sig``, where there is one."""
        return self._storage.member(SIGNATURE)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """The frame's exact pixels (of its source file where kept, else of its JPEG)."""
        file = self._copied(self.picture_file(index))
        return decode(file, self.frame_size, f"{self.path}: frame {index}")

    def picture_file(self, index: int) -> memoryview:
        """The JPEG or PNG that ``picture`` decodes."""
        return self._of_pile(self._pictures or self._frames, index)

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
        stored = self._regions[index]
        return np.frombuffer(self._copied(stored.data), np.uint8).reshape(stored.shape)

    def model(self, name: str) -> memoryview:
        """The ONNX bytes of ``audio_encoder``, ``image`` or ``decoder``."""
        return self.member(f"models/{name}.onnx")

    def network(self, name: str) -> bytes:
        """A copy of ``model(name)``, once it was seen that nothing in it can hurt who runs it.

        Raises:
            AvatarFormatError: see ``onnx_io.check``.
        """
        from lipsync_fast.onnx_io.check import check_network  # who only looks needs none

        view, where = self.model(name), f"{self.path}: {name}.onnx"
        if len(view) > limits.NETWORK_BYTES:
            check_network(view, where)  # refuses it, by its size
        data = self._copied(view)
        if name not in self._networks:
            m = self.manifest
            need = m.rules.need(name, m.width, m.region)
            check_network(data, where, need)
            self._networks.add(name)
        return data
