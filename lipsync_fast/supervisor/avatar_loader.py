# SPDX-License-Identifier: Apache-2.0
"""Has engines load the versions of avatars that they are to hold, and forget the others.

Which engines those are says ``replicas``; what becomes of it says an engine's ``AvatarState``.
"""

from __future__ import annotations

import trio

from lipsync_fast.errors import AvatarError
from lipsync_fast.ipc.control import AvatarState, LoadAvatar, UnloadAvatar
from lipsync_fast.logs import get_logger
from lipsync_fast.supervisor import replicas
from lipsync_fast.supervisor.avatar_catalogue import AvatarCatalogue
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.control import ControlServer
from lipsync_fast.supervisor.roster import Roster

MOST_LOOKED_FOR = 100
"""Avatars that are looked for at a time; fronts ask again for others."""

log = get_logger("lipsync.supervisor")


class AvatarLoader:
    """Says to engines what to load. One thread."""

    def __init__(self, roster: Roster, catalogue: AvatarCatalogue, control: ControlServer) -> None:
        self._roster, self._catalogue, self._control = roster, catalogue, control
        self._looked_for: set[str] = set()

    # ------------------------------------------------------------ what fronts need
    def want(self, name: str) -> bool:
        """A front needs an avatar. True when its package is to be opened (``open_wanted``)."""
        version = self._catalogue.current.get(name)
        if version is not None:
            self.load(version.key)
            return False
        full = len(self._looked_for) >= MOST_LOOKED_FOR
        if full or name in self._looked_for or name in self._catalogue.unloaded:
            return False
        self._looked_for.add(name)
        return True

    async def open_wanted(self, name: str) -> None:
        """Open an avatar's package and have engines load it, or tell fronts that there is none."""
        catalogue = self._catalogue
        try:
            package = await trio.to_thread.run_sync(catalogue.folders.open, name)
        except AvatarError as error:
            catalogue.errors.add(name, str(error))
        except Exception as error:  # a client has asked: that is not to end the server
            log.exception("cannot open an avatar", avatar=name)
            catalogue.errors.add(name, f"cannot be opened ({type(error).__name__})")
        else:
            if name in catalogue.current or name in catalogue.unloaded:
                package.close()  # somebody was faster
            elif catalogue.is_banned(name, package):
                package.close()
            else:
                self.load(catalogue.use(name, package).key)
        self._looked_for.discard(name)
        self._control.publish_engines()

    # ------------------------------------------------------------ what engines load
    def load(self, key: str) -> None:
        """Have the engines load a version that are to hold it first."""
        for engine in replicas.initial_holders(key, self._roster.engines):
            self.load_on(engine, key)

    def load_missing(self, engine: Child) -> None:
        """Have an engine load what has come into use since it was started."""
        for key in self._catalogue.keys:
            if engine.has_room or key == self._catalogue.default_key:
                self.load_on(engine, key)

    def load_where_needed(self) -> None:
        """Have more engines load the avatars that those which hold them can hardly serve."""
        for key in self._catalogue.keys:
            engine = replicas.next_holder(key, self._roster.engines)
            if engine is not None:
                self.load_on(engine, key)

    def load_on(self, engine: Child, key: str) -> None:
        """Have one engine load a version, unless it has or is about to."""
        if not engine.greeted or key in engine.avatars or key in engine.loading:
            return
        path = self._catalogue.path_of(key)
        if path is not None:
            engine.loading.add(key)
            engine.load_errors.forget(key)
            self._catalogue.shared.offer(engine, [key])
            self._control.send(engine, LoadAvatar(name=key, path=path))

    def on_state(self, engine: Child, state: AvatarState) -> None:
        """An engine has loaded an avatar, or cannot."""
        others = [other for other in self._roster.engines if other is not engine]
        key, error = state.name, state.error
        catalogue = self._catalogue
        if state.in_use:
            catalogue.on_failure(key, error)
            for other in others:
                self.unload_forgotten(other)
        else:
            catalogue.on_answer(engine, key, error, others)
        if error:
            log.error("cannot load an avatar", child=engine.name, avatar=key, reason=error)
        self.unload_forgotten(engine)
        self._control.publish_engines()

    # ------------------------------------------------------------ what they forget
    def unload(self, key: str) -> None:
        """Have all engines forget a version, which nobody needs any more."""
        for engine in self._roster.engines:
            self._unload_on(engine, key)

    def unload_forgotten(self, engine: Child) -> None:
        """Have an engine forget what went out of use while it loaded that."""
        known = self._catalogue.versions.keys() | self._catalogue.candidates.keys()
        for key in engine.avatars - known:
            self._unload_on(engine, key)

    def _unload_on(self, engine: Child, key: str) -> None:
        engine.avatars.discard(key)
        engine.loading.discard(key)
        engine.load_errors.forget(key)
        self._control.send(engine, UnloadAvatar(name=key))
