# SPDX-License-Identifier: Apache-2.0
"""Packages that were fetched from a store, on this machine's disk: each under its SHA-256.

    CACHE/packages/SHA256.lsa      a whole package, checked
    CACHE/packages/SHA256.part     what has come of one so far; it is gone on with
    CACHE/views/STORE/NAME.lsa     what a store has under a name (store.py): a link to a package

Processes share it. Who fetches a package has its part locked; who uses one has it mapped, and with
that locked as well (storage.py), so that what is in use is not removed. When room is needed, what
was not used for the longest time goes first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lipsync_fast import places
from lipsync_fast.errors import (
    AvatarStoreError,
    ObjectError,
    ObjectMissingError,
    words_of,
)
from lipsync_fast.objects import Objects

CACHE_VARIABLE, MOST_VARIABLE = "LIPSYNC_FAST_AVATARS_CACHE", "LIPSYNC_FAST_AVATARS_CACHE_MB"
CACHE_MB = 20_000
"""What a cache may hold where nothing else is said."""
_PIECE = 1 << 20
_PACKAGE = re.compile(r"[0-9a-f]{64}\.(lsa|part)")
_LOOK_S = 0.1


class PackageCache:
    """Packages in a folder, of so many bytes at most. Threads and processes may share it.

    Args:
        folder: the user's cache where None.
        most: bytes; of $LIPSYNC_FAST_AVATARS_CACHE_MB, or CACHE_MB, where None.

    Raises:
        AvatarStoreError: there is no place for it.
    """

    def __init__(self, folder: Path | None = None, most: int | None = None) -> None:
        self.folder = folder or default_folder()
        self.most = default_most() if most is None else most
        self._packages = self.folder / "packages"
        try:
            self._packages.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AvatarStoreError(
                f"{self.folder}: packages cannot be kept there ({words_of(error)}); avatars.cache,"
                f" or {CACHE_VARIABLE}, names another folder"
            ) from None

    def path(self, sha256: str) -> Path:
        """Where a package lies, or would."""
        return self._packages / f"{sha256}.lsa"

    def find(self, sha256: str) -> Path | None:
        """A package that is here; it counts as used now."""
        path = self.path(sha256)
        try:
            about = path.stat()
            os.utime(path, ns=(time.time_ns(), about.st_mtime_ns))
        except FileNotFoundError:
            return None
        except OSError:  # another user's, who lets us read
            pass
        return path

    def fetch(
        self,
        objects: Objects,
        key: str,
        sha256: str,
        size: int,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Path:
        """A package, from the store where it is not here. Blocks.

        One that another process is fetching is waited for. What has come before it was cut off does
        not come again.

        Args:
            objects, key: where it lies.
            sha256, size: of all its bytes, as the store says.
            advance: told how many bytes are there now, beyond those that it was told of.

        Raises:
            AvatarStoreError: it is not there, is another one than it should be, or has no room.
        """
        while True:
            found = self.find(sha256)
            if found is not None:
                return found
            with self._part(sha256) as part:
                if part is None:  # somebody else fetches it
                    time.sleep(_LOOK_S)
                    continue
                try:
                    self._complete(part, objects, key, sha256, size, advance)
                    os.fsync(part.fileno())
                    os.rename(self._part_path(sha256), self.path(sha256))
                except ObjectMissingError as error:
                    raise AvatarStoreError(str(error)) from None
                except ObjectError as error:
                    raise AvatarStoreError(f"{error}; what has come is kept") from None
                except OSError as error:
                    raise AvatarStoreError(
                        f"{self.folder}: a package cannot be kept there ({words_of(error)})"
                    ) from None

    def make_room(self, size: int) -> None:
        """Remove what was not used for the longest time until so many bytes have room.

        Raises:
            AvatarStoreError: what is in use leaves too little.
        """
        kept = [(path, path.stat()) for path in self._files()]
        total = sum(about.st_size for _, about in kept)
        for path, about in sorted(kept, key=lambda each: each[1].st_atime_ns):
            if total + size <= self.most:
                return
            if _removed(path):
                total -= about.st_size
        if total + size > self.most:
            raise AvatarStoreError(
                f"a package of {size / 1e6:.0f} MB has no room in {self.folder}: {total / 1e6:.0f}"
                f" of {self.most / 1e6:.0f} MB are in use; raise avatars.cache_mb,"
                f" or {MOST_VARIABLE}"
            )

    # ------------------------------------------------------------ parts
    def _files(self) -> Iterator[Path]:
        with os.scandir(self._packages) as entries:
            for entry in entries:
                if _PACKAGE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)

    def _part_path(self, sha256: str) -> Path:
        return self._packages / f"{sha256}.part"

    @contextlib.contextmanager
    def _part(self, sha256: str) -> Iterator[BinaryIO | None]:
        """What has come of a package, locked; None where somebody else has it."""
        path = self._part_path(sha256)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise AvatarStoreError(f"{path}: cannot be written ({words_of(error)})") from None
        with open(fd, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.path.samestat(os.stat(path), os.fstat(file.fileno()))
            except (BlockingIOError, FileNotFoundError):
                same = False
            yield file if same else None

    def _complete(
        self,
        part: BinaryIO,
        objects: Objects,
        key: str,
        sha256: str,
        size: int,
        advance: Callable[[int], None],
    ) -> None:
        """Fetch what is missing, and check all of it; a part of something else is begun anew."""
        there = min(part.seek(0, os.SEEK_END), size)
        self.make_room(size - there)
        for at in dict.fromkeys((there, 0)):
            about = objects.about(key)
            if about.size != size:
                raise AvatarStoreError(
                    f"{objects.where(key)}: has {about.size} bytes, and should have {size}"
                )
            advance(at)
            objects.fetch(key, about, part, at, advance)
            part.flush()
            if _digest(part) == sha256:
                return
            advance(-size)
        part.truncate(0)
        raise AvatarStoreError(
            f"{objects.where(key)}: is damaged, or another package: its SHA-256 is not {sha256}"
        )


def default_folder() -> Path:
    """$LIPSYNC_FAST_AVATARS_CACHE, else a folder of the user's, or the service's, cache.

    Raises:
        AvatarStoreError: this user has none.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).absolute()
    cache = places.package_cache_folder()
    if cache is None:
        raise AvatarStoreError(
            "there is no home folder to keep packages of a store in: avatars.cache, or"
            f" {CACHE_VARIABLE}, names another one"
        )
    return cache / "avatars"


def default_most() -> int:
    """Bytes that the environment allows a cache.

    Raises:
        AvatarStoreError: it says something else than a number.
    """
    given = os.environ.get(MOST_VARIABLE, "")
    if not given:
        return CACHE_MB * 1_000_000
    if not given.isascii() or not given.isdigit():
        raise AvatarStoreError(f"{MOST_VARIABLE}={given[:40]!r}: expected a number of megabytes")
    return int(given) * 1_000_000


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _removed(path: Path) -> bool:
    """Whether a file could be removed: nobody uses it."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True
