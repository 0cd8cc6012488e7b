# SPDX-License-Identifier: Apache-2.0
"""Keeps a folder of this machine as a store of avatars is, for a server.

Everybody else sees a folder: of a store nothing is asked but here. A package is in the folder when
it is whole, checked, and signed where that is required. A store that cannot be reached, or has
something that cannot be used, leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path

import msgspec

from lipsync_fast.avatars.cache import PackageCache
from lipsync_fast.avatars.store import AvatarStore, Entry, Index
from lipsync_fast.config import Avatars
from lipsync_fast.errors import AvatarError, AvatarStoreError
from lipsync_fast.logs import get_logger
from lipsync_fast.objects import is_url

BUSY_S = 5.0
"""How long it is waited for another thread, which may be fetching much."""

log = get_logger("lipsync.supervisor")


class AvatarMirror:
    """A store's folder on this machine. ``update`` is for threads."""

    def __init__(self, store: AvatarStore, config: Avatars) -> None:
        self._store, self._config = store, config
        self._held: dict[str, tuple[Path, int]] = {}
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where packages lie, by name."""
        return self._store.view

    def begin(self) -> None:
        """Have the default avatar, where the store has it; the others may come later.

        A store that cannot be reached is gone on without, for now.

        Raises:
            AvatarError: the default avatar cannot be had, here or there.
        """
        self._store.view.mkdir(parents=True, exist_ok=True)
        try:
            index = self._store.index
        except AvatarStoreError as error:
            self._tell("", str(error), "a store of avatars cannot be used")
            return
        for warning in self._store.warnings:
            self._tell("", warning, "a store of avatars cannot be used")
        name = self._config.default
        entry = index.avatars.get(name)
        if entry is not None:
            before = self._store.shown().get(name)
            try:
                self._have(name, entry)
            except AvatarError as error:
                if before is None or not before.exists():
                    raise
                log.warning(
                    "a package of a store cannot be had; the one before is used",
                    avatar=name,
                    reason=str(error),
                )
        self._hold_shown()

    def update(self) -> None:
        """Have what the store has now; what cannot be is told once, and left.

        Returns at once where another thread is at it.
        """
        if not self._lock.acquire(timeout=BUSY_S):
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            try:
                index = self._store.refresh()
            except AvatarStoreError as error:
                self._tell("", str(error), "a store of avatars cannot be used")
                return
            self._told.pop("", None)
            self._follow(index)

    def _follow(self, index: Index) -> None:
        wanted = {name: each for name, each in index.avatars.items() if self._is_wanted(name)}
        for name, entry in wanted.items():
            try:
                self._have(name, entry)
                self._told.pop(name, None)
            except AvatarError as error:
                self._tell(name, str(error), "a package of a store cannot be had")
        for name in self._store.shown().keys() - index.avatars.keys():
            self._store.hide(name)
            self._release(name)
            log.info("a store has an avatar no more", avatar=name)

    def _is_wanted(self, name: str) -> bool:
        only = self._config.only
        return not only or name in only or name == self._config.default

    def _have(self, name: str, entry: Entry) -> None:
        """Have a package in the folder.

        Raises:
            AvatarError: it cannot be had, or used.
        """
        path = self._store.cache.path(entry.sha256)
        if self._store.shown().get(name) == path and path.exists():
            self._hold(name, path)
            return
        fetched = self._store.fetch(entry)
        from lipsync_fast.avatars.signing import open_signed, trusted_keys

        keys = trusted_keys(self._config.require_signed)
        open_signed(fetched, keys, every_byte=False).close()  # the rest of it engines see
        self._store.show(name, fetched)
        self._hold(name, fetched)
        log.info("fetched an avatar", avatar=name, bytes=entry.size, sha256=entry.sha256[:16])

    # ------------------------------------------------------------ what is in use
    def _hold_shown(self) -> None:
        for name, path in self._store.shown().items():
            self._hold(name, path)

    def _hold(self, name: str, path: Path) -> None:
        """Have nobody remove a package from the cache."""
        if self._held.get(name, (None, 0))[0] == path:
            return
        self._release(name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        self._held[name] = path, fd
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _release(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            os.close(held[1])

    def close(self) -> None:
        """Hold nothing any more."""
        for name in list(self._held):
            self._release(name)

    def _tell(self, name: str, reason: str, event: str) -> None:
        """Warn, once for each reason."""
        if self._told.get(name) != reason:
            self._told[name] = reason
            fields = {"avatar": name} if name else {}
            log.warning(event, **fields, reason=reason)


def open_mirrors(config: Avatars) -> tuple[Avatars, list[AvatarMirror]]:
    """Mirrors of the stores among the folders of avatars, and the folders without stores.

    Raises:
        AvatarStoreError: one cannot be used; see ``AvatarMirror.begin``.
    """
    if not any(map(is_url, config.folders)):
        return config, []
    cache = PackageCache(
        Path(config.cache).absolute() if config.cache else None, config.cache_mb * 1_000_000
    )
    mirrors, folders = [], []
    for folder in config.folders:
        if not is_url(folder):
            folders.append(folder)
            continue
        mirror = AvatarMirror(AvatarStore(folder, cache), config)
        mirrors.append(mirror)
        folders.append(str(mirror.folder))
    for mirror in mirrors:
        mirror.begin()
    return msgspec.structs.replace(config, folders=tuple(folders)), mirrors
