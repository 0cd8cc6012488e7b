# SPDX-License-Identifier: Apache-2.0
"""Which avatars are in use: what every engine is to load, and why some cannot be had."""

from __future__ import annotations

import time
from pathlib import Path

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.config import Avatars
from lipsync_fast.errors import AvatarNotFoundError
from lipsync_fast.supervisor.children import Child, Slot
from lipsync_fast.supervisor.shared import SharedFrames

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
        self.paths: dict[str, str] = {config.default: str(path.absolute())}
        """Name to path, the default one first: what a new engine loads."""
        self.shared = SharedFrames()
        self._errors: dict[str, tuple[str, float]] = {}
        self._deaths: dict[str, int] = {}

    @property
    def default(self) -> str:
        """The name of the default avatar."""
        return self._config.default

    def born_with(self, slot: Slot) -> dict[str, str]:
        """What a new engine loads before it is ready, the default one first: all, or on a GPU whose
        memory was full what its predecessor held."""
        if slot.last is None or not slot.was_full:
            return dict(self.paths)
        held = slot.last.avatars | {self.default}
        return {name: path for name, path in self.paths.items() if name in held}

    def find(self, name: str) -> Path:
        """The package of an avatar that clients may use (reads folders: for a thread).

        Raises:
            AvatarNotFoundError: there is none.
        """
        only = self._config.only
        if name == self.default or (Path(name).name == name and (not only or name in only)):
            return self._library.find(name)
        raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}")

    def use(self, name: str, path: Path) -> None:
        """Engines are to load it."""
        if self.paths.get(name) != str(path.absolute()):
            self.shared.forget(name)
        self.paths[name] = str(path.absolute())
        self._errors.pop(name, None)

    def refuse(self, name: str, reason: str) -> None:
        """It cannot be had: told for a while, and new engines do not load it."""
        if name != self.default:
            self.paths.pop(name, None)
            self.shared.forget(name)
        while len(self._errors) >= MOST_ERRORS:
            del self._errors[next(iter(self._errors))]
        self._errors[name] = reason, time.monotonic()

    def answered(self, engine: Child, name: str, error: str, others: list[Child]) -> None:
        """An engine has loaded it (error empty), or cannot."""
        engine.asked.discard(name)
        if not error:
            engine.errors.pop(name, None)
            engine.avatars.add(name)
            self._deaths.pop(name, None)
            return
        engine.avatars.discard(name)
        engine.errors[name] = error, time.monotonic()
        if not any(name in other.avatars or name in other.asked for other in others):
            self.refuse(name, error)

    def died(self, engine: Child) -> list[str]:
        """An engine has died, perhaps of what it was loading. Says what is no longer in use."""
        dropped = []
        for name in engine.asked - {self.default}:
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if self._deaths[name] >= DEADLY and name in self.paths:
                del self._deaths[name]
                self.refuse(name, "engines died while they loaded it")
                dropped.append(name)
        return dropped

    def errors_of(self, engine: Child) -> dict[str, str]:
        """Why an engine has not got avatars, as fronts are told."""
        now = time.monotonic()
        self._errors = {n: e for n, e in self._errors.items() if now - e[1] < ERROR_S}
        engine.errors = {n: e for n, e in engine.errors.items() if now - e[1] < ERROR_S}
        both = self._errors | engine.errors
        return {name: reason for name, (reason, _) in both.items() if name not in engine.avatars}
