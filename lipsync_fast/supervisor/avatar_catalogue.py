# SPDX-License-Identifier: Apache-2.0
"""Which versions of avatars there are: what engines are to load, and what sessions get.

    nobody uses it ──wanted──► current ──replaced, withdrawn──► leaving ──no front uses it──► gone
         └──load──► candidate ──engines hold it──┘

A name has one current version at most; ``avatar_rollout`` and ``avatar_loader`` say when one
becomes another.
"""

from __future__ import annotations

import time

from lipsync_fast.avatars.identity import Identity
from lipsync_fast.ipc.control import AvatarVersion
from lipsync_fast.supervisor.avatar_folders import AvatarFolders
from lipsync_fast.supervisor.children import Child, ChildSlot
from lipsync_fast.supervisor.recent_errors import RecentErrors
from lipsync_fast.supervisor.shared_frames import SharedFrames
from lipsync_fast.supervisor.versions import OpenedPackage, Version

DEADLY = 2
"""Engines that have died over an avatar before it is taken out of use."""
MOST_ERRORS = 100


class AvatarCatalogue:
    """The default avatar, and all that clients have asked for. No engine's state is kept here.

    It has a method for each thing that can happen to a version: small ones, over one table.

    Attributes:
        folders: where packages come from.
        versions: by key: what new engines load, and those that are leaving, whose jobs may still
            come.
        current: by name: what sessions that begin now get.
        candidates: by key: being loaded before they become current.
        unloaded: names that are refused until they are loaded again.
        number: raised with every change of what fronts are told.
        errors: names, and keys, that cannot be had.
        shared: memory for what engines make of avatars' frames.
    """

    def __init__(self, folders: AvatarFolders) -> None:
        """Begin with the default avatar.

        Raises:
            AvatarNotFoundError, AvatarSignatureError: see ``AvatarFolders.open_default``.
        """
        package = folders.open_default()
        self.folders = folders
        self.versions: dict[str, Version] = {}
        self.current: dict[str, Version] = {}
        self.candidates: dict[str, Version] = {}
        self.unloaded: set[str] = set()
        self.number = 0
        self.errors = RecentErrors(MOST_ERRORS)
        self.shared = SharedFrames()
        self._numbers: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._deaths: dict[str, int] = {}
        self._banned: dict[str, tuple[Identity, str]] = {}
        self.use(folders.default, package)

    # ------------------------------------------------------------ what engines load
    @property
    def default_key(self) -> str:
        """The key of the default avatar's current version."""
        return self.current[self.folders.default].key

    @property
    def keys(self) -> list[str]:
        """Keys of all versions that engines are to hold, the default avatar's first."""
        first = self.default_key
        return [first, *(key for key in self.versions if key != first)]

    def initial_avatars(self, slot: ChildSlot) -> dict[str, str]:
        """What a new engine loads before it is ready, the default avatar first: all versions, or
        on a GPU whose memory was full what its predecessor held. Paths by key."""
        keys = self.keys
        if slot.last is not None and slot.was_full:
            held = slot.last.avatars | {self.default_key}
            keys = [key for key in keys if key in held]
        paths = ((key, self.path_of(key)) for key in keys)
        return {key: path for key, path in paths if path is not None}

    def path_of(self, key: str) -> str | None:
        """Where an engine loads a version from; None where it is not to."""
        version = self.candidates.get(key) or self.versions.get(key)
        if version is None or not version.is_loadable:
            return None
        return version.package.open_path

    # ------------------------------------------------------------ versions come and go
    def count(self, name: str) -> int:
        """How many versions of a name engines hold or are to hold."""
        there = [*self.versions.values(), *self.candidates.values()]
        return sum(version.name == name for version in there)

    def add_candidate(self, name: str, package: OpenedPackage) -> Version:
        """A new version, to be loaded by engines before anybody gets it."""
        version = self._new_version(name, package)
        self.candidates[version.key] = version
        return version

    def _new_version(self, name: str, package: OpenedPackage) -> Version:
        count = self._keys[name] = self._keys.get(name, 0) + 1
        key = name if count == 1 else f"{name}/{count}"
        while key in self.versions or key in self.candidates:  # a default avatar's odd path
            key += "/"
        return Version(name, key, self._numbers.get(name, 0) + 1, package)

    def use(self, name: str, package: OpenedPackage) -> Version:
        """Engines are to load a package, and sessions to get it at once."""
        version = self._new_version(name, package)
        self._make_current(version)
        return version

    def accept(self, version: Version) -> None:
        """Engines hold a candidate: sessions get it from now on."""
        del self.candidates[version.key]
        version.since = time.monotonic()
        self._make_current(version)

    def _make_current(self, version: Version) -> None:
        self.number += 1
        before = self.current.get(version.name)
        if before is not None:
            before.retired_in = self.number
        self.current[version.name] = self.versions[version.key] = version
        version.number = self._numbers[version.name] = self._numbers.get(version.name, 0) + 1
        self.unloaded.discard(version.name)
        self._banned.pop(version.name, None)
        self.errors.forget(version.name)

    def discard(self, version: Version) -> None:
        """A candidate does not become current."""
        del self.candidates[version.key]
        self._close(version)

    def withdraw(self, name: str, refused: bool = True) -> None:
        """Sessions do not get it any more; those that have it go on.

        Args:
            refused: it is refused until it is loaded again; else it is as if never asked for.
        """
        self.number += 1
        before = self.current.pop(name, None)
        if before is not None:
            before.retired_in = self.number
        if refused:
            self.unloaded.add(name)
        else:
            self.unloaded.discard(name)

    def forget_unused(self, fronts: list[Child]) -> list[Version]:
        """Forget versions that no session has or can get any more; says which.

        A front that knows a catalogue without it, and does not use it, never will.
        """
        gone = [
            version
            for version in self.versions.values()
            if version.retired_in
            and all(
                front.front_load.catalogue >= version.retired_in
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
        version.package.close()

    # ------------------------------------------------------------ what engines say
    def on_answer(self, engine: Child, key: str, error: str, others: list[Child]) -> None:
        """An engine has loaded a version (error empty), or cannot."""
        engine.loading.discard(key)
        if not error:
            engine.load_errors.forget(key)
            engine.avatars.add(key)
            self._deaths.pop(key, None)
            return
        engine.avatars.discard(key)
        engine.load_errors.add(key, error)
        if key in self.versions and not any(
            key in other.avatars or key in other.loading for other in others
        ):
            self._refuse(key, error)

    def on_failure(self, key: str, error: str) -> None:
        """An avatar has failed in use, again and again: it would in any engine."""
        if key in self.versions and key != self.default_key:
            self._ban(key, f"its frames fail: {error}")

    def on_death(self, engine: Child) -> list[str]:
        """An engine has died, perhaps of what it was loading. Says what is no longer in use."""
        dropped = []
        for key in engine.loading & self.versions.keys() - {self.default_key}:
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] >= DEADLY:
                self._ban(key, "engines died while they loaded it")
                dropped.append(key)
        return dropped

    def _ban(self, key: str, reason: str) -> None:
        """A version harms engines: not loaded again because a client asks, as long as its files are
        the same; only where somebody has it loaded."""
        version = self.versions[key]
        if len(self._banned) >= MOST_ERRORS:
            del self._banned[next(iter(self._banned))]
        self._banned[version.name] = version.package.identity, reason
        self._refuse(key, reason)

    def is_banned(self, name: str, package: OpenedPackage) -> bool:
        """Whether a package has harmed engines; then that is told again."""
        identity, reason = self._banned.get(name, (None, ""))
        if identity != package.identity:
            return False
        self.errors.add(name, reason)
        return True

    def _refuse(self, key: str, reason: str) -> None:
        """No engine can hold a version: told for a while, and new engines do not load it."""
        version = self.versions[key]
        if key != self.default_key:
            del self.versions[key]
            if self.current.get(version.name) is version:
                del self.current[version.name]
                self.number += 1
            self._close(version)
        self.errors.add(key, reason)
        if not version.retired_in:
            self.errors.add(version.name, reason)

    # ------------------------------------------------------------ what fronts are told
    def for_fronts(self) -> list[AvatarVersion]:
        """What sessions get."""
        return [
            AvatarVersion(name=v.name, key=v.key, number=v.number, path=v.package.open_path)
            for v in self.current.values()
        ]

    def close(self) -> None:
        """Forget all."""
        self.shared.close()
        for version in [*self.versions.values(), *self.candidates.values()]:
            version.package.close()
