# SPDX-License-Identifier: Apache-2.0
"""Write a package that has another one's frames and networks of its own, atomically."""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from lipsync_fast.avatars.manifest import FileEntry, Manifest
from lipsync_fast.avatars.members import file_entry
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.storage import MANIFEST, PIECE, copied, write_array
from lipsync_fast.avatars.writer import put_in_place
from lipsync_fast.errors import AvatarFormatError, OutputError

REGIONS = "regions.npy"


class DerivedPackage:
    """A package under construction; use as a context, and end it with ``finish``.

    Frames, masks and what else there is are taken over byte by byte, and held against their
    checksums; a signature is not: it vouches for another package.

    Args:
        source: whose frames they are; closed by the caller.
        dest: a folder, or a file if its name ends in ``.lsa``.
        manifest: what the new one says of itself; checksums are filled in.
        models: ONNX bytes of all networks.
        overwrite: replace a package that is already at ``dest``.

    Attributes:
        folder: where it lies before it has its name; whole, as ``manifest`` says.

    Raises:
        OutputError: ``dest`` exists (without ``overwrite``) or cannot be written.
        AvatarFormatError: ``source`` is damaged.
    """

    def __init__(
        self,
        source: AvatarPackage,
        dest: Path,
        manifest: Manifest,
        models: Mapping[str, bytes],
        *,
        overwrite: bool = False,
    ) -> None:
        self.dest, self._overwrite = dest, overwrite
        if dest.exists() and not overwrite:
            raise OutputError(f"{dest}: already exists")
        self.folder = dest.parent / f".{dest.name}.{secrets.token_hex(4)}.part"
        self._source, self._files = source, dict[str, FileEntry]()
        try:
            (self.folder / "models").mkdir(parents=True)
            for name, entry in source.manifest.files.items():
                if not name.startswith("models/") and name != REGIONS:
                    self._take(name, entry)
            if REGIONS in source.manifest.files:
                self._add(REGIONS, write_array(self._crops(manifest)))
            for name, data in models.items():
                self._add(f"models/{name}.onnx", data)
            self._describe(manifest)
            AvatarPackage.open(self.folder).close()  # what we write, we can read
        except BaseException as error:
            self._give_up(error)
            raise

    def __enter__(self) -> DerivedPackage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_up(error)

    def finish(self, manifest: Manifest) -> Path:
        """Say of it what was found out meanwhile, and put it in place; returns its path.

        Raises:
            OutputError: something else has appeared at ``dest``.
        """
        self._describe(manifest)
        AvatarPackage.open(self.folder).close()
        put_in_place(self.folder, self.dest, self._overwrite)
        return self.dest

    def _give_up(self, error: BaseException | None) -> None:
        """Remove what is not in place, and say of a disk what is wrong with it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            reason = "no space left on the device" if full else error.strerror
            raise OutputError(f"{self.dest}: cannot be written ({reason})") from error

    def _take(self, name: str, entry: FileEntry) -> None:
        view, digest = self._source.member(name), hashlib.sha256()
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for at in range(0, len(view), PIECE):
                piece = copied(view[at : at + PIECE], self._source.path)
                digest.update(piece)
                out.write(piece)
        if digest.hexdigest() != entry.sha256:
            raise AvatarFormatError(
                f"{self._source.path}: {name} is damaged (its checksum differs)"
            )
        self._files[name] = entry

    def _add(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        self._files[name] = file_entry(self.folder / name)

    def _describe(self, manifest: Manifest) -> None:
        files = dict(sorted(self._files.items()))
        whole = msgspec.structs.replace(manifest, files=files)
        encoded = msgspec.json.format(msgspec.json.encode(whole), indent=1)
        (self.folder / MANIFEST).write_bytes(encoded)

    def _crops(self, manifest: Manifest) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The face crops in the new size."""
        source, side = self._source, manifest.crop
        if side == source.manifest.crop:
            return np.stack([source.crop(i) for i in range(source.manifest.frame_count)])
        rule = manifest.crop_rule
        return np.stack(
            [
                rule.resized(source.picture(i)[source.rect(i).slices], side, side)
                for i in range(source.manifest.frame_count)
            ]
        )
