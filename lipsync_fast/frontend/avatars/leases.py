# SPDX-License-Identifier: Apache-2.0
"""The avatars that a front has opened: which versions it uses, and those that it only looks at.

A package's files stay mapped for as long as anything refers to it, so nothing here can take them
from somebody who looks. What is counted is use: engines hold a version for as long as a front says
that it uses it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lipsync_fast.avatars.identity import Identity, identity_of
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.signing import TrustedKeys, open_signed
from lipsync_fast.errors import AvatarNotFoundError
from lipsync_fast.ipc.control import AvatarVersion, Engines

MOST_PEEKED_AT = 64
"""Packages that are not in use and are kept open."""


class AvatarLease:
    """A version of an avatar that somebody uses, until ``release``.

    Attributes:
        name: of the avatar; key: what jobs name this version by.
    """

    def __init__(self, version: AvatarVersion, package: AvatarPackage, uses: dict[str, int]):
        self.name, self.key, self.package = version.name, version.key, package
        self.number = version.number
        self._version, self._uses, self._released = version, uses, False
        uses[self.key] = uses.get(self.key, 0) + 1

    def copy(self) -> AvatarLease:
        """For somebody else, who may use it longer."""
        return AvatarLease(self._version, self.package, self._uses)

    @contextmanager
    def using(self) -> Iterator[AvatarLease]:
        """The same for a while."""
        lease = self.copy()
        try:
            yield lease
        finally:
            lease.release()

    def release(self) -> None:
        """It is used no more; twice is harmless."""
        if self._released:
            return
        self._released = True
        self._uses[self.key] -= 1
        if not self._uses[self.key]:
            del self._uses[self.key]


class Catalogue:
    """What the supervisor says of avatars. ``peek`` may be called in any thread."""

    def __init__(self, keys: TrustedKeys | None) -> None:
        self._keys = keys
        self._current: dict[str, AvatarVersion] = {}
        self._unloaded: frozenset[str] = frozenset()
        self._refused: dict[str, str] = {}
        self._packages: dict[str, AvatarPackage] = {}
        self._peeked_at: OrderedDict[tuple[Path, Identity], AvatarPackage] = OrderedDict()
        self._lock = threading.Lock()
        self.number = 0
        """The supervisor's number of what is known here: raised with every change."""
        self.uses: dict[str, int] = {}
        """How many use a version, by its key."""

    def apply_update(self, update: Engines) -> None:
        """The supervisor has said which avatars there are."""
        with self._lock:
            self._current = {version.name: version for version in update.avatars}
            self._unloaded = frozenset(update.unloaded)
            self._refused = update.refused
            self.number = update.catalogue
            kept = self.uses.keys() | {version.key for version in update.avatars}
            self._packages = {k: p for k, p in self._packages.items() if k in kept}

    @property
    def names(self) -> list[str]:
        """The avatars that are in use."""
        return list(self._current)

    @property
    def unloaded(self) -> frozenset[str]:
        """Names that are refused."""
        return self._unloaded

    def refused(self, name: str) -> str | None:
        """Why a name could not be had lately."""
        return self._refused.get(name)

    def current(self, name: str) -> AvatarVersion | None:
        """The version that sessions get now; None where the avatar is not in use."""
        return self._current.get(name)

    def lease(self, version: AvatarVersion) -> AvatarLease:
        """Use a version.

        Raises:
            AvatarError: it cannot be opened.
        """
        return AvatarLease(version, self.open(version), self.uses)

    def open(self, version: AvatarVersion) -> AvatarPackage:
        """The package of a version.

        Raises:
            AvatarError: it cannot be opened.
        """
        with self._lock:
            package = self._packages.get(version.key)
            if package is None:
                package = self._packages[version.key] = self._open(Path(version.path))
            return package

    def peek(self, path: Path) -> AvatarPackage:
        """A package that is not in use, as it is now.

        Raises:
            AvatarError: it cannot be opened.
        """
        identity = identity_of(path)
        if identity is None:
            raise AvatarNotFoundError(f"{path}: no such avatar package")
        with self._lock:
            package = self._peeked_at.pop((path, identity), None) or self._open(path)
            self._peeked_at[path, identity] = package
            while len(self._peeked_at) > MOST_PEEKED_AT:
                self._peeked_at.popitem(last=False)
            return package

    def _open(self, path: Path) -> AvatarPackage:
        # Engines see to the rest before they load it.
        return open_signed(path, self._keys, every_byte=False)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            for package in [*self._packages.values(), *self._peeked_at.values()]:
                package.close()
            self._packages.clear()
            self._peeked_at.clear()
