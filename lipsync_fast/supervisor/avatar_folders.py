# SPDX-License-Identifier: Apache-2.0
"""Which packages clients may use, by name or by path: the folders of avatars, as configured.

Everything here reads folders; where the server serves already, it is for a thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lipsync_fast.avatars.identity import Identity, identity_of
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.config import Avatars
from lipsync_fast.errors import AvatarFormatError, AvatarNotFoundError
from lipsync_fast.supervisor.avatar_mirror import AvatarMirror
from lipsync_fast.supervisor.versions import OpenedPackage

Snapshot = dict[str, tuple[Path, Identity]]
"""Packages by name, as they were at one moment."""


class AvatarFolders:
    """Where avatars are looked for, and which names clients may say."""

    def __init__(self, config: Avatars, mirrors: Sequence[AvatarMirror] = ()) -> None:
        """Look in the folders of a configuration, of which some are kept as stores are."""
        self._config, self._mirrors = config, mirrors
        self._library = AvatarLibrary(config.folders)

    def update(self) -> None:
        """Have what stores have now."""
        for mirror in self._mirrors:
            mirror.update()

    @property
    def follow_stores(self) -> bool:
        """Whether some of the folders are kept as stores are."""
        return bool(self._mirrors)

    @property
    def default(self) -> str:
        """The name of the default avatar."""
        return self._config.default

    def open_default(self) -> OpenedPackage:
        """The default avatar's package, before anything is served.

        Raises:
            AvatarNotFoundError: it is not there.
            AvatarSignatureError: it must be signed, and is not, or the keys cannot be read.
        """
        path = self._library.find(self.default)
        if self._config.require_signed:
            from lipsync_fast.avatars.signing import open_signed, trusted_keys

            keys = trusted_keys(self._config.require_signed)
            open_signed(path, keys, every_byte=False).close()  # the rest of it engines see
        return OpenedPackage(path)

    def allows(self, name: str) -> bool:
        """Whether clients may use an avatar of that name, where there is one."""
        if name == self.default:
            return True
        only = self._config.only
        plain = Path(name).name == name and name.isprintable() and name[:1] not in ("", ".")
        return plain and not name.endswith(".lsa") and (not only or name in only)

    def locate(self, name: str) -> Path:
        """The package of an avatar that clients may use.

        Raises:
            AvatarNotFoundError: there is none.
        """
        if not self.allows(name):
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}")
        return self._library.find(name, here=name == self.default)

    def open(self, name: str, path: str = "", anywhere: bool = True) -> OpenedPackage:
        """The package of an avatar, or the one at a path.

        Args:
            anywhere: the path may lie outside of the folders of avatars.

        Raises:
            AvatarNotFoundError: there is none.
            AvatarFormatError: it is none, or lies where it must not.
        """
        if not path:
            return OpenedPackage(self.locate(name))
        if not self.allows(name):
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}")
        if not anywhere and not self._holds(path):
            raise AvatarFormatError("the path lies outside of the folders of avatars")
        return OpenedPackage(Path(path))

    def _holds(self, path: str) -> bool:
        """Whether a package lies in one of the folders, whatever links lead to it."""
        if not os.path.isabs(path) or "\0" in path:
            return False
        real = os.path.realpath(path)
        folders = (os.path.realpath(folder) for folder in self._library.folders)
        return any(os.path.dirname(real) == folder for folder in folders)

    def snapshot(self) -> Snapshot:
        """What lies in the folders now, the first of each name."""
        seen: Snapshot = {}
        for name, path in self._library.candidates():
            identity = identity_of(path)
            if name not in seen and identity is not None and self.allows(name):
                seen[name] = path, identity
        return seen
