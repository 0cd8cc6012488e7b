# SPDX-License-Identifier: Apache-2.0
"""Where avatars are looked for, and which there are."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lipsync_fast import places
from lipsync_fast.errors import AvatarError, AvatarNotFoundError, AvatarStoreError
from lipsync_fast.objects import is_url, shown_url
from lipsync_fast.untrusted import limits

if TYPE_CHECKING:
    from lipsync_fast.avatars.manifest import Manifest
    from lipsync_fast.avatars.signing import TrustedKeys

VARIABLE = "LIPSYNC_FAST_AVATARS"
"""Environment variable: folders and stores of avatars, separated as PATH is."""


_PARTS = re.compile(r"[A-Za-z][\w+.-]*://[^/:]*(?::\d+)?(?:/[^:]*)?|[^:]+")
"""Of that variable: URLs, which have colons of their own, and paths."""


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
    """Finds avatars by name: in given folders, then the environment's, the user's, the shipped.

    Instead of a folder there may be the URL of a store (``store.AvatarStore``), whose packages are
    fetched when they are asked for.
    """

    def __init__(
        self,
        folders: Iterable[str | os.PathLike[str]] = (),
        keys: TrustedKeys | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Look in ``folders`` first.

        Args:
            keys: what they have not signed is listed as broken.
            advance: told how many bytes of a package have come from a store.
        """
        self._keys, self._advance = keys, advance
        variable = os.environ.get(VARIABLE, "")
        named = [found[0] for found in _PARTS.finditer(variable)]
        own = [folder for folder in (user_folder(),) if folder is not None]
        given = [os.fspath(folder) for folder in (*folders, *named)]
        self.folders: list[Path | str] = [f if is_url(f) else Path(f) for f in given]
        self.folders += [*own, shipped_folder()]
        self.warnings: list[str] = []
        """What was gone on without: stores that could not be reached."""

    def candidates(self) -> Iterator[tuple[str, Path]]:
        """Names and paths of all that may be avatars, in the order in which they are looked for.

        Of a store, what was fetched of it.
        """
        for folder in self.folders:
            if isinstance(folder, str):
                from lipsync_fast.avatars.store import AvatarStore

                yield from sorted(AvatarStore(folder).shown().items())
                continue
            yield from _in_folder(folder)

    def _stored(self, url: str, name: str) -> Path | list[str]:
        """The package that a store has under a name; else the names that it has.

        A store that cannot be reached, and never could, has none: the next folder may.
        """
        from lipsync_fast.avatars.store import AvatarStore

        store = AvatarStore(url)
        try:
            names = list(store.index.avatars)
        except AvatarStoreError as error:
            self.warnings.append(str(error))
            return []
        finally:
            self.warnings += store.warnings
        if name not in names:
            return names
        found = store.find(name, self._advance)
        store.show(name, found)
        return found

    def find(self, name: str | os.PathLike[str], here: bool = True) -> Path:
        """The package of that name, or at that path.

        Args:
            here: it may be a folder of that name in the working directory.

        Raises:
            AvatarNotFoundError: says where it was looked for, and names that are near.
        """
        text = os.fspath(name)
        if is_url(text):
            from lipsync_fast.avatars.store import found_at

            return found_at(text, self._advance)
        path = Path(text)
        if len(path.parts) > 1 or text.endswith(".lsa") or path.is_absolute():
            if not os.path.exists(path):  # unlike Path.exists, also for names too long to be
                shown = text if len(text) <= 256 and text.isprintable() else ascii(text[:256])
                raise AvatarNotFoundError(f"{shown}: no such avatar package")
            return path
        names = []
        for folder in self.folders:
            if isinstance(folder, str):
                stored = self._stored(folder, text)
                if isinstance(stored, Path):
                    return stored
                names += stored
                continue
            for found, where in _in_folder(folder):
                if found == text and _fault(found) is None:
                    return where
                names.append(found)
        if here and os.path.isfile(path / "manifest.json"):
            return path
        names = [found for found in names if _fault(found) is None]
        near = difflib.get_close_matches(text[:256], names, 3) or sorted(set(names))[:8]
        hint = f"; there are: {', '.join(near)}" if near else ""
        looked = ", ".join(shown_url(f) if isinstance(f, str) else str(f) for f in self.folders)
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


def _in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of all that may be avatars in a folder."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # not there, not a folder, or closed to this user
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        if os.path.isfile(path / "manifest.json"):
            yield path.name, path
        elif path.suffix == ".lsa" and os.path.isfile(path):
            yield path.stem, path
