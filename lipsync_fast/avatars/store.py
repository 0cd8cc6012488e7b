# SPDX-License-Identifier: Apache-2.0
"""A store of packages at a URL (extra ``store``), from which machines take them.

    STORE/index.json                        what there is
    STORE/packages/NAME-SHA256[:16].lsa     packages; one is never changed

    {"format": "lipsync-avatar-store", "version": 1, "avatars":
      {"anna": {"file": "packages/anna-0123456789abcdef.lsa", "size": 81234567, "sha256": "…"}}}

A package is put there first, and the index that names it then, in one step: who reads the index
gets whole packages, and who has begun to fetch one that is replaced begins anew. Nothing else is
asked of a store than to give objects: any HTTP server will do, with ranges so that what was cut
off is gone on with. Checksums find what was damaged on the way; who may publish is said by
signatures (``avatars.require_signed``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from lipsync_fast.avatars.cache import PackageCache
from lipsync_fast.errors import (
    AvatarNotFoundError,
    AvatarStoreError,
    ObjectError,
    ObjectMissingError,
    words_of,
)
from lipsync_fast.objects import Objects, checked_url, shown_url
from lipsync_fast.untrusted import limits

FORMAT: Literal["lipsync-avatar-store"] = "lipsync-avatar-store"
INDEX, PACKAGES = "index.json", "packages"
MOST_INDEX_BYTES = 8 << 20
"""Of an index: some 30,000 avatars."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What an index says of an avatar: its package's key, size in bytes and SHA-256."""

    file: str
    size: int
    sha256: str


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """What there is in a store, by name."""

    format: str = FORMAT
    version: int = 1
    avatars: dict[str, Entry] = {}


_INDEX = msgspec.json.Decoder(Index)


def read_index(data: bytes, where: str) -> Index:
    """Parse and check an index.

    Raises:
        AvatarStoreError: it is none, of a newer version, or names what cannot be.
    """
    try:
        index = _INDEX.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AvatarStoreError(f"{where}: is no index of a store of avatars ({reason})") from None
    if index.format != FORMAT:
        raise AvatarStoreError(f"{where}: is no index of a store of avatars")
    if index.version != 1:
        raise AvatarStoreError(
            f"{where}: version {index.version} is newer than this program; update lipsync-fast"
        )
    for name, entry in index.avatars.items():
        if not is_name(name) or not _is_key(entry.file) or entry.size < 1:
            raise AvatarStoreError(f"{where}: what it says of {name[:80]!r} cannot be")
        if not _SHA256.fullmatch(entry.sha256):
            raise AvatarStoreError(f"{where}: the checksum of {name[:80]!r} is none")
    return index


def is_name(name: str) -> bool:
    """Whether an avatar may be called so: a plain name of a file, which everybody can type."""
    plain = os.path.basename(name) == name and name.isprintable() and name[:1] not in ("", ".")
    short = len(name.encode(errors="replace")) <= min(limits.NAME_CHARACTERS, 200)
    return plain and short and not name.endswith(".lsa")


def _is_key(key: str) -> bool:
    parts = key.split("/")
    return key.isprintable() and len(key) <= 600 and not any(p in ("", ".", "..") for p in parts)


class AvatarStore:
    """A store, and what of it is on this machine. Calls block; one thread.

    Args:
        url: of the store.
        cache: where packages are kept.
        patient: wait half a minute for a store that does not answer; else some seconds.

    Raises:
        AvatarStoreError: the URL, or the place for packages, cannot be used.
    """

    def __init__(self, url: str, cache: PackageCache | None = None, patient: bool = False) -> None:
        self.url = shown_url(url).rstrip("/")
        self.cache = cache or PackageCache()
        self.warnings: list[str] = []
        """What was gone on without; who shows them takes them."""
        with store_errors():
            checked_url(url)
            if "?" in url:
                raise ObjectError(f"{self.url}?…: a signed URL is good for one object, no store")
            self._quick, self._objects = Objects(url), Objects(url)
            if not patient:
                self._quick = Objects(url, patient=False)
        named = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.view = self.cache.folder / "views" / named
        self._index: Index | None = None
        self._version: str | None = None

    @property
    def index(self) -> Index:
        """What there is; what was known last, where the store cannot be reached now.

        Raises:
            AvatarStoreError: it cannot be reached, and never could; or it holds no index.
        """
        if self._index is None:
            try:
                return self.refresh()
            except AvatarStoreError as error:
                kept = self._kept_index()
                if kept is None:
                    raise
                self._index = kept
                self.warnings.append(f"{error}; going on with what is here already")
        return self._index

    def refresh(self) -> Index:
        """Read the index again, where it has changed.

        Raises:
            AvatarStoreError: it cannot be read.
        """
        where = self._quick.where(INDEX)
        try:
            with store_errors():
                read = self._quick.read(INDEX, MOST_INDEX_BYTES, self._version)
        except AvatarStoreError as error:
            if isinstance(error.__cause__, ObjectMissingError):
                raise AvatarStoreError(
                    f"{where}: there is no store; `lipsync-fast avatar publish` makes one"
                ) from None
            raise
        if read is None:
            assert self._index is not None
            return self._index
        data, about = read
        index = read_index(data, where)
        self._index, self._version = index, about.version
        with contextlib.suppress(OSError):
            self.view.mkdir(parents=True, exist_ok=True)
            _write(self.view / f".{INDEX}", data)
        return index

    def find(self, name: str, advance: Callable[[int], None] = lambda count: None) -> Path:
        """The package that the store has under a name, fetched where it is not here.

        Raises:
            AvatarNotFoundError: there is none.
            AvatarStoreError: it cannot be had.
        """
        entry = self._entry(name)
        try:
            return self.fetch(entry, advance)
        except AvatarStoreError:  # it may have been replaced since the index was read
            with contextlib.suppress(AvatarStoreError):
                self.refresh()
            if self._entry(name) == entry:
                raise
        return self.fetch(self._entry(name), advance)

    def _entry(self, name: str) -> Entry:
        entry = self.index.avatars.get(name)
        if entry is None:
            raise AvatarNotFoundError(f"{self.url}: has no avatar {name[:80]!r}")
        return entry

    def fetch(self, entry: Entry, advance: Callable[[int], None] = lambda count: None) -> Path:
        """The package of an entry.

        Raises:
            AvatarStoreError: it cannot be had.
        """
        with store_errors():
            return self.cache.fetch(self._objects, entry.file, entry.sha256, entry.size, advance)

    def _kept_index(self) -> Index | None:
        path = self.view / f".{INDEX}"
        with contextlib.suppress(OSError, AvatarStoreError):
            return read_index(path.read_bytes(), str(path))
        return None

    # ------------------------------------------------------------ what has a name here
    def show(self, name: str, package: Path) -> None:
        """Have a package in ``view`` under a name, in one step.

        Raises:
            AvatarStoreError: it cannot be written.
        """
        link = self.view / f"{name}.lsa"
        try:
            self.view.mkdir(parents=True, exist_ok=True)
            new = self.view / f".{secrets.token_hex(8)}"
            new.symlink_to(package)
            os.replace(new, link)
        except OSError as error:
            raise AvatarStoreError(f"{link}: cannot be written ({words_of(error)})") from None

    def shown(self) -> dict[str, Path]:
        """What is in ``view``: packages by name."""
        found = {}
        with contextlib.suppress(OSError):
            for link in self.view.glob("[!.]*.lsa"):
                found[link.stem] = Path(os.readlink(link))
        return found

    def hide(self, name: str) -> None:
        """Have a name in ``view`` no longer."""
        with contextlib.suppress(OSError):
            (self.view / f"{name}.lsa").unlink()


def found_at(
    url: str, advance: Callable[[int], None] = lambda count: None, cache: PackageCache | None = None
) -> Path:
    """The package at a URL: of a store's avatar, STORE/NAME; or a file, ….lsa.

    Beside a file lies its checksum, ….lsa.sha256, as ``sha256sum`` writes it.

    Raises:
        AvatarNotFoundError: there is none.
        AvatarStoreError: it cannot be had.
    """
    with store_errors():
        checked_url(url)
    before, _, name = url.rstrip("/").rpartition("/")
    if "?" in url or not name or before.endswith(("/", ":")):
        raise AvatarStoreError(f"{shown_url(url)}: expected STORE/NAME, or a file (….lsa)")
    if not name.endswith(".lsa"):
        from urllib.parse import unquote

        return AvatarStore(before, cache, patient=True).find(unquote(name), advance)
    with store_errors():
        objects = Objects(before)
        try:
            read = objects.read(f"{name}.sha256", 4096)
        except ObjectMissingError:
            raise AvatarStoreError(
                f"{url}: its checksum is missing beside it ({name}.sha256, as sha256sum writes it)"
            ) from None
        assert read is not None
        sha256 = read[0][:64].decode(errors="replace").lower()
        if not _SHA256.fullmatch(sha256):
            raise AvatarStoreError(f"{url}.sha256: holds no SHA-256")
        try:
            size = objects.about(name).size
        except ObjectMissingError as error:
            raise AvatarNotFoundError(str(error)) from None
        return (cache or PackageCache()).fetch(objects, name, sha256, size, advance)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """What goes wrong with objects goes wrong with the store."""
    try:
        yield
    except ObjectError as error:
        raise AvatarStoreError(str(error)) from error


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{secrets.token_hex(8)}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
