# SPDX-License-Identifier: Apache-2.0
"""Write an avatar package, atomically: under its name there is a whole package or nothing."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.members import (
    FrameWriter,
    PileWriter,
    file_entry,
    packed_mask,
    replace_with,
    thumbnail,
)
from lipsync_fast.avatars.package import MODELS, AvatarPackage
from lipsync_fast.avatars.storage import ALIGNMENT, write_array
from lipsync_fast.errors import AvatarFormatError, OutputError
from lipsync_fast.geometry import Rect

_CHUNK = 1 << 20


def check_new(dest: Path, overwrite: bool) -> None:
    """Whether a package may be written at ``dest``; ask before long work begins.

    Raises:
        OutputError: something is there, and is not to be replaced.
    """
    if os.path.exists(dest) and not overwrite:  # whatever its name is: other checks judge that
        raise OutputError(f"{dest}: already exists")


class AvatarWriter:
    """Builds a package from frames and models; leave the ``with`` block after ``finish``.

    Args:
        dest: the package's folder, or a file if its name ends in ``.lsa``.
        manifest: what is known beforehand; counts and checksums are filled in.
        keep_pictures: store the frames' source files, so that pixels stay exact.
        keep_regions: store the resized face crops, for a quicker start.
        overwrite: replace a package that is already at ``dest``.

    Raises:
        OutputError: ``dest`` exists (without ``overwrite``) or cannot be written.
    """

    def __init__(
        self,
        dest: Path,
        manifest: Manifest,
        *,
        keep_pictures: bool = True,
        keep_regions: bool = True,
        overwrite: bool = False,
    ) -> None:
        self.dest, self._manifest, self._overwrite = dest, manifest, overwrite
        check_new(dest, overwrite)
        self._keep_regions = keep_regions
        self._temporary = dest.parent / f".{dest.name}.{secrets.token_hex(4)}.part"
        self._finished = False
        try:
            dest.parent.mkdir(parents=True, exist_ok=True)
            (self._temporary / "models").mkdir(parents=True)
            self._frames = FrameWriter(self._temporary)
            self._masks = PileWriter(self._temporary / "masks.bin")
            self._pictures = PileWriter(self._temporary / "pictures.bin") if keep_pictures else None
        except OSError as error:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise OutputError(f"{dest}: cannot be written ({error.strerror})") from None
        self._rects: list[Rect] = []
        self._regions: list[NDArray[np.uint8]] = []
        self._thumbnail = b""

    def __enter__(self) -> AvatarWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pile in (self._frames, self._masks, self._pictures):
            if pile is not None:
                pile.close()
        if not self._finished:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space left on the device" if full else error.strerror
            raise OutputError(f"{self.dest}: cannot be written ({reason})") from error

    def add_frame(
        self,
        picture: NDArray[np.uint8],
        rect: Rect,
        mask: NDArray[np.bool_] | None = None,
        source: bytes | None = None,
        jpeg: bytes | None = None,
    ) -> None:
        """Append a frame.

        Args:
            picture: H x W x 3 uint8 RGB, every frame of one size.
            rect: the face crop; it must lie inside the frame, and not be empty.
            mask: rectangle-sized, True where the original pixel stays.
            source: the file it was read from (JPEG or PNG); a PNG is made where there is none.
            jpeg: the picture as the manifest has it coded, where that was done before.
        """
        m = self._manifest
        if picture.shape != (m.frame_height, m.frame_width, 3):
            raise AvatarFormatError(
                f"frame {len(self._rects)} has shape {picture.shape}, expected"
                f" {(m.frame_height, m.frame_width, 3)}"
            )
        if not (min(rect.size) > 0 and rect in Rect(0, 0, m.frame_width, m.frame_height)):
            raise AvatarFormatError(
                f"frame {len(self._rects)}: crop {tuple(rect.corners)} leaves the frame"
            )
        if mask is not None and mask.shape != (rect.height, rect.width):
            raise AvatarFormatError(
                f"frame {len(self._rects)}: mask of shape {mask.shape}, expected"
                f" {(rect.height, rect.width)}, the crop's"
            )
        if jpeg is None:
            jpeg = encode_frame(picture, m.jpeg)
        self._frames.add(jpeg)
        self._rects.append(rect)
        self._masks.add(b"" if mask is None else packed_mask(mask))
        if self._pictures is not None:
            if source is None:
                out = io.BytesIO()
                Image.fromarray(picture).save(out, "PNG", compress_level=3)
                source = out.getvalue()
            self._pictures.add(source)
        if self._keep_regions:
            self._regions.append(m.crop_rule.resized(picture[rect.slices], m.crop, m.crop))
        if not self._thumbnail:
            self._thumbnail = thumbnail(picture, rect)

    def add_model(self, name: str, data: bytes) -> None:
        """Add the ONNX bytes of ``audio_encoder``, ``image`` or ``decoder``."""
        if name not in MODELS:
            raise AvatarFormatError(f"model {name!r}: expected one of {', '.join(MODELS)}")
        (self._temporary / "models" / f"{name}.onnx").write_bytes(data)

    def finish(self) -> Path:
        """Complete the package and put it in place; returns its path.

        Raises:
            AvatarFormatError: no frames, or a model is missing.
            OutputError: something else has appeared at ``dest``.
        """
        folder = self._temporary
        self._frames.write_index()
        arrays: dict[str, NDArray[np.generic]] = {
            "rects.npy": np.array([rect.corners for rect in self._rects], np.int32).reshape(-1, 4),
        }
        if self._masks.size:
            self._masks.write_index()
        else:
            self._masks.close()
            (folder / "masks.bin").unlink()
        if self._pictures is not None:
            self._pictures.write_index()
        if self._keep_regions and self._regions:
            arrays["regions.npy"] = np.stack(self._regions)
        for name, array in arrays.items():
            (folder / name).write_bytes(write_array(array))
        (folder / "thumbnail.jpg").write_bytes(self._thumbnail)
        files = {
            path.relative_to(folder).as_posix(): file_entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = msgspec.structs.replace(
            self._manifest, frame_count=max(1, len(self._rects)), files=files
        )
        encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        (folder / "manifest.json").write_bytes(encoded)
        if not self._rects:
            raise AvatarFormatError(f"{self.dest}: an avatar needs at least one frame")
        AvatarPackage.open(folder).close()  # what we write, we can read
        put_in_place(folder, self.dest, self._overwrite)
        if folder.exists():
            shutil.rmtree(folder)
        self._finished = True
        return self.dest


def put_in_place(folder: Path, dest: Path, overwrite: bool) -> None:
    """Give a finished folder its name, or pack it into a file of that name (``.lsa``); the folder
    is left then.

    Raises:
        OutputError: something is there, without ``overwrite``.
    """
    if dest.suffix != ".lsa":
        install(folder, dest, overwrite)
        return
    packed = folder.with_suffix(".zip")
    try:
        pack(folder, packed)
        install(packed, dest, overwrite)
    finally:
        packed.unlink(missing_ok=True)


def install(made: Path, dest: Path, overwrite: bool) -> None:
    """Give a finished package its name; an older one is moved aside first and then removed."""
    if not dest.exists():
        os.rename(made, dest)
        return
    if not overwrite:
        raise OutputError(f"{dest}: already exists")
    if dest.is_dir() and not (dest / "manifest.json").is_file():
        raise OutputError(f"{dest}: is a folder but not an avatar package; it is left alone")
    old = dest.parent / f".{dest.name}.{secrets.token_hex(4)}.old"
    replace_with(made, dest, old)
    shutil.rmtree(old) if old.is_dir() else old.unlink()


def pack(folder: Path, file: Path) -> None:
    """Write a package folder as one uncompressed zip whose members start at multiples of 64."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            name, size = path.relative_to(folder).as_posix(), path.stat().st_size
            with _opened(archive, name, size) as out, open(path, "rb") as data:
                shutil.copyfileobj(data, out, _CHUNK)


def add_stored(archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    """Add a member to a package file, as ``pack`` does."""
    with _opened(archive, name, len(data)) as out:
        for at in range(0, len(data), _CHUNK):
            out.write(data[at : at + _CHUNK])


def _opened(archive: zipfile.ZipFile, name: str, size: int) -> IO[bytes]:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    wide = size > zipfile.ZIP64_LIMIT  # then 20 bytes follow the padding
    start = archive.fp.tell() + 30 + len(info.filename) + 20 * wide  # type: ignore[union-attr]
    padding = -(start + 4) % ALIGNMENT
    info.extra = struct.pack("<HH", 0xD935, padding) + bytes(padding)
    info.external_attr = 0o644 << 16
    return archive.open(info, "w", force_zip64=wide)
