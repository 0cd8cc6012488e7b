# SPDX-License-Identifier: Apache-2.0
"""Which avatars are in use: what every engine is to load, and why some cannot be had.

    nobody uses it ──wanted──► current ──replaced, unloaded──► leaving ──no front uses it──► gone
         └──load──► candidate ──engines hold it──┘

A name has one current version at most; ``changes`` and ``talk`` say when one becomes another.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.config import Avatars
from lipsync_fast.errors import AvatarFormatError, AvatarNotFoundError
from lipsync_fast.ipc.control import AvatarVersion
from lipsync_fast.supervisor.children import Child, Slot
from lipsync_fast.supervisor.shared_frames import SharedFrames
from lipsync_fast.supervisor.versions import Opened, Version

ERROR_S = 10.0
"""How long a failure is told; who asks after that makes it be tried again."""
DEADLY = 2
"""Engines that have died over an avatar before it is taken out of use."""
MOST_ERRORS = 100


class AvatarsInUse:
    """The default avatar, and all that clients have asked for. No engine's state is kept here."""

    def __init__(self, config: Avatars) -> None:
        """Find the default avatar.

        Raises:
            AvatarNotFoundError: it is not there.
            AvatarSignatureError: it must be signed, and is not, or the keys cannot be read.
        """
        self._config = config
        self._library = AvatarLibrary(config.folders)
        path = self._library.find(config.default)
        if config.require_signed:
            from lipsync_fast.avatars.signing import open_signed, trusted_keys

            keys = trusted_keys(config.require_signed)
            open_signed(path, keys, every_byte=False).close()  # the rest of it engines see
        self.versions: dict[str, Version] = {}
        """By key: what new engines load, and those that are leaving, whose jobs may still come."""
        self.current: dict[str, Version] = {}
        """By name: what sessions that begin now get."""
        self.candidates: dict[str, Version] = {}
        """By key: being loaded before they become current."""
        self.unloaded: set[str] = set()
        """Names that are refused until they are loaded again."""
        self.catalogue = 0
        """Raised with every change of what fronts are told."""
        self.shared = SharedFrames()
        self._numbers: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._errors: dict[str, tuple[str, float]] = {}
        self._deaths: dict[str, int] = {}
        self.use(config.default, Opened(path))

    @property
    def default(self) -> str:
        """The name of the default avatar."""
        return self._config.default

    @property
    def default_key(self) -> str:
        """The key of its current version."""
        return self.current[self.default].key

    @property
    def folders(self) -> AvatarLibrary:
        """Where avatars are looked for."""
        return self._library

    # ------------------------------------------------------------ what engines load
    @property
    def keys(self) -> list[str]:
        """Of all versions that engines are to hold, the default avatar's first."""
        first = self.default_key
        return [first, *(key for key in self.versions if key != first)]

    def born_with(self, slot: Slot) -> dict[str, str]:
        """What a new engine loads before it is ready, the default one first: all, or on a GPU whose
        memory was full what its predecessor held."""
        keys = self.keys
        if slot.last is not None and slot.was_full:
            held = slot.last.avatars | {self.default_key}
            keys = [key for key in keys if key in held]
        return {key: self.versions[key].place.opens for key in keys if self._loadable(key)}

    def _loadable(self, key: str) -> bool:
        """Not where the files of a version that is leaving are others now: its sessions would see
        a mixture."""
        version = self.versions[key]
        return not version.left or version.place.intact

    def path_of(self, key: str) -> str | None:
        """Where an engine loads a version from; None where it is not to."""
        candidate = self.candidates.get(key)
        if candidate is not None:
            return candidate.place.opens
        if key in self.versions and self._loadable(key):
            return self.versions[key].place.opens
        return None

    # ------------------------------------------------------------ what there is
    def allowed(self, name: str) -> bool:
        """Whether clients may use an avatar of that name, where there is one."""
        if name == self.default:
            return True
        only = self._config.only
        plain = Path(name).name == name and name.isprintable() and name[:1] not in ("", ".")
        return plain and not name.endswith(".lsa") and (not only or name in only)

    def find(self, name: str) -> Path:
        """The package of an avatar that clients may use (reads folders: for a thread).

        Raises:
            AvatarNotFoundError: there is none.
        """
        if not self.allowed(name):
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}")
        return self._library.find(name, here=name == self.default)

    def open(self, name: str, path: str = "", anywhere: bool = True) -> Opened:
        """The package of an avatar, or the one at a path (for a thread).

        Args:
            anywhere: the path may lie outside of the folders of avatars.

        Raises:
            AvatarNotFoundError: there is none.
            AvatarFormatError: it is none, or lies where it must not.
        """
        if not path:
            return Opened(self.find(name))
        if not self.allowed(name):
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}")
        if not anywhere and not self._inside(path):
            raise AvatarFormatError("the path lies outside of the folders of avatars")
        return Opened(Path(path))

    def _inside(self, path: str) -> bool:
        if not os.path.isabs(path) or "\0" in path:
            return False
        real = os.path.realpath(path)
        folders = (os.path.realpath(folder) for folder in self._library.folders)
        return any(os.path.dirname(real) == folder for folder in folders)

    # ------------------------------------------------------------ changes
    def alive(self, name: str) -> int:
        """How many versions of a name engines hold or are to hold."""
        there = [*self.versions.values(), *self.candidates.values()]
        return sum(version.name == name for version in there)

    def candidate(self, name: str, place: Opened) -> Version:
        """A new version, to be loaded by engines before anybody gets it."""
        version = self._version(name, place)
        self.candidates[version.key] = version
        return version

    def _version(self, name: str, place: Opened) -> Version:
        count = self._keys[name] = self._keys.get(name, 0) + 1
        key = name if count == 1 else f"{name}/{count}"
        while key in self.versions or key in self.candidates:  # a default avatar's odd path
            key += "/"
        return Version(name, key, self._numbers.get(name, 0) + 1, place)

    def use(self, name: str, place: Opened) -> Version:
        """Engines are to load what was found, and sessions to get it."""
        version = self._version(name, place)
        self._become_current(version)
        return version

    def accept(self, version: Version) -> None:
        """Engines hold a candidate: sessions get it from now on."""
        del self.candidates[version.key]
        version.since = time.monotonic()
        self._become_current(version)

    def _become_current(self, version: Version) -> None:
        self.catalogue += 1
        before = self.current.get(version.name)
        if before is not None:
            before.left = self.catalogue
        self.current[version.name] = self.versions[version.key] = version
        version.number = self._numbers[version.name] = self._numbers.get(version.name, 0) + 1
        self.unloaded.discard(version.name)
        self._errors.pop(version.name, None)

    def discard(self, version: Version) -> None:
        """A candidate does not become current."""
        del self.candidates[version.key]
        self._close(version)

    def take_out(self, name: str, refused: bool = True) -> None:
        """Sessions do not get it any more; those that have it go on.

        Args:
            refused: it is refused until it is loaded again; else it is as if never asked for.
        """
        self.catalogue += 1
        before = self.current.pop(name, None)
        if before is not None:
            before.left = self.catalogue
        if refused:
            self.unloaded.add(name)
        else:
            self.unloaded.discard(name)

    def ended(self, fronts: list[Child]) -> list[Version]:
        """Versions that no session has or can get any more; they are forgotten with this call.

        A front that has heard of a catalogue without it, and does not use it, never will.
        """
        gone = [
            version
            for version in self.versions.values()
            if version.left
            and all(
                front.front_load.catalogue >= version.left
                and not front.front_load.avatars.get(version.key)
                for front in fronts
                if front.greeted
            )
        ]
        for version in gone:
            del self.versions[version.key]
            self._close(version)
        return gone

    def _close(self, version: Version) -> None:
        self.shared.forget(version.key)
        self._deaths.pop(version.key, None)
        version.place.close()

    def refuse_name(self, name: str, reason: str) -> None:
        """An avatar cannot be had: told for a while."""
        while len(self._errors) >= MOST_ERRORS:
            del self._errors[next(iter(self._errors))]
        self._errors[name] = reason, time.monotonic()

    def _refuse(self, key: str, reason: str) -> None:
        """No engine can hold a version: told for a while, and new engines do not load it."""
        version = self.versions[key]
        if key != self.default_key:
            del self.versions[key]
            if self.current.get(version.name) is version:
                del self.current[version.name]
                self.catalogue += 1
            self._close(version)
        self.refuse_name(key, reason)
        if not version.left:
            self.refuse_name(version.name, reason)

    # ------------------------------------------------------------ what engines say
    def answered(self, engine: Child, key: str, error: str, others: list[Child]) -> None:
        """An engine has loaded a version (error empty), or cannot."""
        engine.asked.discard(key)
        if not error:
            engine.errors.pop(key, None)
            engine.avatars.add(key)
            self._deaths.pop(key, None)
            return
        engine.avatars.discard(key)
        engine.errors[key] = error, time.monotonic()
        if key in self.versions and not any(
            key in other.avatars or key in other.asked for other in others
        ):
            self._refuse(key, error)

    def died(self, engine: Child) -> list[str]:
        """An engine has died, perhaps of what it was loading. Says what is no longer in use."""
        dropped = []
        for key in engine.asked & self.versions.keys() - {self.default_key}:
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] >= DEADLY:
                self._refuse(key, "engines died while they loaded it")
                dropped.append(key)
        return dropped

    # ------------------------------------------------------------ what fronts are told
    def told(self) -> list[AvatarVersion]:
        """What sessions get."""
        return [
            AvatarVersion(name=v.name, key=v.key, number=v.number, path=v.place.opens)
            for v in self.current.values()
        ]

    @property
    def errors(self) -> dict[str, str]:
        """Names, and keys, that cannot be had, with the reasons."""
        now = time.monotonic()
        self._errors = {n: e for n, e in self._errors.items() if now - e[1] < ERROR_S}
        return {name: reason for name, (reason, _) in self._errors.items()}

    def errors_of(self, engine: Child) -> dict[str, str]:
        """Why an engine has not got avatars, as fronts are told."""
        now = time.monotonic()
        engine.errors = {n: e for n, e in engine.errors.items() if now - e[1] < ERROR_S}
        both = self.errors | {name: reason for name, (reason, _) in engine.errors.items()}
        return {name: reason for name, reason in both.items() if name not in engine.avatars}

    def close(self) -> None:
        """Forget all."""
        self.shared.close()
        for version in [*self.versions.values(), *self.candidates.values()]:
            version.place.close()
