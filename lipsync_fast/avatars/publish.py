# SPDX-License-Identifier: Apache-2.0
"""Putting packages into a store, and taking them out of it (``store.py`` says how one looks)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.store import (
    INDEX,
    MOST_INDEX_BYTES,
    PACKAGES,
    Entry,
    Index,
    is_name,
    read_index,
    store_errors,
)
from lipsync_fast.avatars.writer import pack
from lipsync_fast.errors import (
    AvatarNotFoundError,
    AvatarStoreError,
    ObjectChangedError,
    ObjectError,
    ObjectMissingError,
    OutputError,
    words_of,
)
from lipsync_fast.objects import Objects, checked_url

MOST_TRIES = 10
"""Others may publish at the same time: then the index is read again."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Published:
    """A name and its entry in a store; whether it was so before, and whether it is signed."""

    name: str
    entry: Entry
    unchanged: bool
    is_signed: bool


def publish(package: Path, url: str, name: str) -> Published:
    """Put a package into a store, which is made where there is none, instead of what the name was.

    Args:
        package: a folder, or a file.

    Raises:
        AvatarError: it cannot be used, or a member does not agree with its checksum.
        AvatarStoreError: the name cannot be one, or the store cannot be written.
        OutputError: there is no room to pack it.
    """
    if not is_name(name):
        raise AvatarStoreError(f"{name[:80]!r}: no avatar can be called so in a store; see --as")
    objects = _writable(url)
    with contextlib.ExitStack() as stack:
        with AvatarPackage.open(package) as opened:
            opened.verify()
            is_signed = opened.signature() is not None
        file = stack.enter_context(_as_file(package))
        digest, size = hashlib.sha256(), 0
        with open(file, "rb") as data:
            while piece := data.read(_PIECE):
                digest.update(piece)
                size += len(piece)
        sha256 = digest.hexdigest()
        entry = Entry(file=f"{PACKAGES}/{name}-{sha256[:16]}.lsa", size=size, sha256=sha256)
        with store_errors():
            if not _is_there(objects, entry):
                objects.put(entry.file, file)

        def change(avatars: dict[str, Entry]) -> Entry | None:
            before = avatars.get(name)
            avatars[name] = entry
            return before

        before = _changed(objects, url, change)
        _remove(objects, before, entry)
    return Published(name, entry, before == entry, is_signed)


def unpublish(name: str, url: str) -> None:
    """Take an avatar out of a store.

    Raises:
        AvatarNotFoundError: it has none of that name.
        AvatarStoreError: it cannot be written.
    """
    objects = _writable(url)

    def change(avatars: dict[str, Entry]) -> Entry | None:
        if name not in avatars:
            raise AvatarNotFoundError(f"{objects.url}: has no avatar {name[:80]!r}")
        return avatars.pop(name)

    _remove(objects, _changed(objects, url, change), None)


# ---------------------------------------------------------------- parts
def _writable(url: str) -> Objects:
    with store_errors():
        parts = urlsplit(checked_url(url))
        if parts.scheme.lower() in ("http", "https"):
            raise ObjectError(
                f"{parts.scheme}://{parts.netloc}: nothing is published by HTTP; publish to a"
                " folder (file:///PATH) and have it served"
            )
        if parts.scheme == "file":
            folder = Path(unquote(parts.path))
            try:
                (folder / PACKAGES).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise AvatarStoreError(f"{folder}: cannot be written ({words_of(error)})") from None
        return Objects(url)


def _is_there(objects: Objects, entry: Entry) -> bool:
    try:
        return objects.about(entry.file).size == entry.size
    except ObjectMissingError:
        return False


def _changed(
    objects: Objects, url: str, change: Callable[[dict[str, Entry]], Entry | None]
) -> Entry | None:
    """Change an index, however many do at the same time; gives what ``change`` does."""
    with store_errors(), _folder_locked(url) as is_folder:
        for _ in range(MOST_TRIES):
            version, avatars = "", dict[str, Entry]()
            with contextlib.suppress(ObjectMissingError):
                read = objects.read(INDEX, MOST_INDEX_BYTES)
                assert read is not None
                version = read[1].version
                avatars = dict(read_index(read[0], objects.where(INDEX)).avatars)
            changed = change(avatars)
            index = Index(avatars=dict(sorted(avatars.items())))
            data = msgspec.json.format(msgspec.json.encode(index), indent=1)
            try:
                objects.put(INDEX, data, None if is_folder else version)
                return changed
            except ObjectChangedError:
                continue
    raise AvatarStoreError(f"{objects.where(INDEX)}: others change it all the time; try again")


@contextlib.contextmanager
def _folder_locked(url: str) -> Iterator[bool]:
    """One who publishes at a time, where the store is a folder (which knows no versions)."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        yield False
        return
    try:
        with open(Path(unquote(parts.path)) / f".{INDEX}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield True
    except OSError as error:
        raise AvatarStoreError(f"{parts.path}: cannot be written ({words_of(error)})") from None


def _remove(objects: Objects, before: Entry | None, now: Entry | None) -> None:
    """Remove a package that the index names no more; one that stays harms nobody."""
    if before is not None and (now is None or before.file != now.file):
        with contextlib.suppress(ObjectError):
            objects.delete(before.file)


@contextlib.contextmanager
def _as_file(package: Path) -> Iterator[Path]:
    """A package as one file; a folder is packed for a while."""
    if not package.is_dir():
        yield package
        return
    try:
        with tempfile.TemporaryDirectory(prefix="lipsync-publish-") as folder:
            file = Path(folder) / "package.lsa"
            pack(package, file)
            yield file
    except OSError as error:
        where = tempfile.gettempdir()
        raise OutputError(f"{where}: no room to pack {package} ({words_of(error)})") from None
