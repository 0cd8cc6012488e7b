# SPDX-License-Identifier: Apache-2.0
"""Where avatars are looked for, and which there are."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lipsync_fast import places
from lipsync_fast.errors import AvatarError, AvatarNotFoundError
from lipsync_fast.untrusted import limits

if TYPE_CHECKING:
    from lipsync_fast.avatars.manifest import Manifest
    from lipsync_fast.avatars.signing import TrustedKeys

VARIABLE = "LIPSYNC_FAST_AVATARS"
"""Environment variable: folders of avatars, separated as PATH is."""


def user_folder() -> Path | None:
    """The user's own avatars: $XDG_DATA_HOME/lipsync-fast/avatars; None without a home folder."""
    data = places.data_folder()
    return None if data is None else data / "avatars"


def folder_for_new(option: str) -> Path:
    """The user's folder of avatars, for one that is made.

    Args:
        option: of the command, which names another place.

    Raises:
        AvatarError: this user has none.
    """
    folder = user_folder()
    if folder is None:
        raise AvatarError(
            f"there is no home folder to keep the avatar in: say where with {option},"
            " or set HOME or XDG_DATA_HOME"
        )
    return folder


def shipped_folder() -> Path:
    """The avatars that come with the package."""
    return Path(__file__).resolve().parents[1] / "data" / "avatars"


def _fault(name: str) -> str | None:
    """Why nobody can ask for an avatar by that name; None where they can."""
    if not name.isprintable():
        return "a name with characters that cannot be seen"
    if len(name) > limits.NAME_CHARACTERS:
        return f"a name of {len(name)} characters; expected at most {limits.NAME_CHARACTERS}"
    return None


@dataclass(frozen=True)
class AvatarInfo:
    """An avatar that was found: its manifest, or the reason why it cannot be used."""

    name: str
    path: Path
    manifest: Manifest | None
    error: str | None


class AvatarLibrary:
    """Finds avatars by name: in given folders, then the environment's, the user's, the shipped."""

    def __init__(
        self, folders: Iterable[str | os.PathLike[str]] = (), keys: TrustedKeys | None = None
    ) -> None:
        """Look in ``folders`` first; with ``keys``, list what they have not signed as broken."""
        self._keys = keys
        named = [Path(f) for f in os.environ.get(VARIABLE, "").split(os.pathsep) if f]
        own = [folder for folder in (user_folder(),) if folder is not None]
        self.folders = [*(Path(f) for f in folders), *named, *own, shipped_folder()]

    def candidates(self) -> Iterator[tuple[str, Path]]:
        """Names and paths of all that may be avatars, in the order in which they are looked for."""
        for folder in self.folders:
            try:
                paths = sorted(folder.iterdir())
            except OSError:  # not there, not a folder, or closed to this user
                continue
            for path in paths:
                if path.name.startswith("."):
                    continue
                if os.path.isfile(path / "manifest.json"):
                    yield path.name, path
                elif path.suffix == ".lsa" and os.path.isfile(path):
                    yield path.stem, path

    def find(self, name: str | os.PathLike[str], here: bool = True) -> Path:
        """The package of that name, or at that path.

        Args:
            here: it may be a folder of that name in the working directory.

        Raises:
            AvatarNotFoundError: says where it was looked for, and names that are near.
        """
        text = os.fspath(name)
        path = Path(text)
        if len(path.parts) > 1 or text.endswith(".lsa") or path.is_absolute():
            if not os.path.exists(path):  # unlike Path.exists, also for names too long to be
                shown = text if len(text) <= 256 and text.isprintable() else ascii(text[:256])
                raise AvatarNotFoundError(f"{shown}: no such avatar package")
            return path
        names = []
        for found, where in self.candidates():
            if found == text and _fault(found) is None:
                return where
            names.append(found)
        if here and os.path.isfile(path / "manifest.json"):
            return path
        names = [found for found in names if _fault(found) is None]
        near = difflib.get_close_matches(text[:256], names, 3) or sorted(set(names))[:8]
        hint = f"; there are: {', '.join(near)}" if near else ""
        looked = ", ".join(str(f) for f in self.folders)
        raise AvatarNotFoundError(f"avatar {text[:80]!r} was not found in {looked}{hint}")

    def list(self) -> list[AvatarInfo]:
        """All avatars, the first of each name; broken ones with their error."""
        from lipsync_fast.avatars.package import AvatarPackage  # numpy: who only finds needs none

        out: dict[str, AvatarInfo] = {}
        for name, path in self.candidates():
            if name in out:
                continue
            fault = _fault(name)
            if fault is not None:
                error = f"{str(path)!a}: {fault}"
                out[name] = AvatarInfo(ascii(name), path, None, error)
                continue
            try:
                with AvatarPackage.open(path) as package:
                    if self._keys is not None:
                        self._keys.check(package)
                    out[name] = AvatarInfo(name, path, package.manifest, None)
            except AvatarError as reason:
                out[name] = AvatarInfo(name, path, None, str(reason))
        return sorted(out.values(), key=lambda a: a.name)
