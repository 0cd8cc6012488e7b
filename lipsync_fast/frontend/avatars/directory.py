# SPDX-License-Identifier: Apache-2.0
"""Avatars by the names that clients give: which there are, a look at one, a lease on one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

import trio

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.signing import trusted_keys
from lipsync_fast.config import Avatars
from lipsync_fast.errors import AvatarError, AvatarNotFoundError, EngineLostError
from lipsync_fast.frontend.avatars.leases import AvatarLease, Catalogue
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.ipc.control import AnyMessage, Engines, WantAvatar
from lipsync_fast.tokens.subject import Subject

LOAD_TIMEOUT_S = 30.0
"""How long an engine may take to load an avatar that a client asks for."""
NAMES_S = 2.0
"""How long a list of avatars is believed: looking for them opens each."""
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^/:]*/)+")


def without_folders(message: str) -> str:
    """A message with files' names alone: where they lie is not a client's business."""
    return _FOLDERS.sub("", message)


class AvatarDirectory:
    """What clients may use. ``names`` and ``peek`` may be called in any thread.

    Args:
        config: see ``config.Avatars``.
        pool: knows what engines have loaded.
        send: to the supervisor.
    """

    def __init__(
        self, config: Avatars, pool: EnginePool, send: Callable[[AnyMessage], None]
    ) -> None:
        self._config, self._pool, self._send = config, pool, send
        keys = trusted_keys(config.require_signed)
        self._library = AvatarLibrary(config.folders, keys)
        self.catalogue = Catalogue(keys)
        self._names: list[str] = []
        self._names_until = 0.0

    @property
    def default(self) -> str:
        """The avatar of clients that name none."""
        return self._config.default

    def apply_update(self, update: Engines) -> None:
        """The supervisor has said which avatars there are."""
        if update.catalogue != self.catalogue.number:
            self._names_until = 0.0
        self.catalogue.apply_update(update)

    def default_of(self, subject: Subject) -> str:
        """The avatar of who names none: the server's, or the first that this one may use."""
        names = subject.allowed.avatars
        return names[0] if names and self.default not in names else self.default

    def names(self, subject: Subject) -> list[str]:
        """Names of the avatars that somebody may use, the default one first."""
        return list(filter(subject.may_use, self._all_names()))

    def _all_names(self) -> list[str]:
        now = time.monotonic()
        if now >= self._names_until:
            number = self.catalogue.number
            there = {a.name for a in self._library.list() if a.error is None}
            there |= {*self.catalogue.names}
            names = sorted(n for n in there - self.catalogue.unloaded if self._allowed(n))
            self._names = sorted(names, key=lambda name: name != self.default)
            # Only now: who asks meanwhile, in another thread, looks for itself.
            unchanged = number == self.catalogue.number
            self._names_until = now + NAMES_S if unchanged else 0.0
        return self._names

    def _allowed(self, name: str) -> bool:
        only = self._config.only
        return not only or name in only or name == self.default

    def peek(self, name: str, subject: Subject) -> AvatarPackage:
        """An avatar's package as it is now, only to look at; '' is the default one.

        Raises:
            AvatarNotFoundError: there is none of that name that ``subject`` may use; a path is no
                name here.
            AvatarError: it cannot be used.
        """
        name = self._usable(subject.avatar(name, self.default))
        version = self.catalogue.current(name)
        try:
            if version is not None:
                return self.catalogue.open(version)
            return self.catalogue.peek(self._library.find(name, here=name == self.default))
        except AvatarNotFoundError:  # its message names folders, which are not a client's business
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}") from None
        except AvatarError as error:
            raise type(error)(without_folders(str(error))) from None

    def _usable(self, name: str) -> str:
        """A name, of an avatar that clients may use.

        Raises:
            AvatarError: they may not.
        """
        by_path = os.sep in name or name.endswith(".lsa") or name.startswith(".")
        if name != self.default and (by_path or not self._allowed(name)):
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}")
        if name in self.catalogue.unloaded:
            raise AvatarError(f"avatar {name[:64]!r} is unloaded: it cannot be used at present")
        return name

    async def lease(self, name: str, subject: Subject) -> AvatarLease:
        """The version of an avatar that sessions get now, and an engine has loaded it.

        Release it when nothing of it is needed any more.

        Raises:
            AvatarNotFoundError, AvatarError: it cannot be used.
            EngineLostError: no engine has loaded it in time.
        """
        name = self._usable(subject.avatar(name, self.default))
        version = self.catalogue.current(name)
        if version is not None and self._pool.holds(version.key):
            return self.catalogue.lease(version)
        if version is None:
            self.peek(name, subject)  # what is not there, or broken, needs no engine
        self._send(WantAvatar(name=name))
        with trio.move_on_after(LOAD_TIMEOUT_S):
            return await self._loaded(name)
        raise EngineLostError(f"no engine has loaded avatar {name!r} within {LOAD_TIMEOUT_S:g} s")

    async def _loaded(self, name: str) -> AvatarLease:
        """Wait until an engine has loaded an avatar, whichever version is current then."""
        while True:
            version = self.catalogue.current(self._usable(name))
            if version is not None and self._pool.holds(version.key):
                return self.catalogue.lease(version)
            error = self.catalogue.refused(name)
            if version is not None:
                error = self._pool.error(version.key)
            if error is not None:
                raise AvatarError(f"avatar {name!r} cannot be used: {without_folders(error)}")
            await self._pool.changed()

    def close(self) -> None:
        """Forget the mapped packages."""
        self.catalogue.close()
