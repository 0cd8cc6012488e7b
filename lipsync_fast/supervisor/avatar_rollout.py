# SPDX-License-Identifier: Apache-2.0
"""Avatars that are loaded, replaced and unloaded while the server runs.

    load    the files are opened; one engine loads them, a spare where there is one; then the others
            do; then sessions that begin get them. Until then, nothing has changed for anybody.
    unload  sessions that begin are refused; those that are there go on.
    leaving a version that sessions cannot get any more, until no front uses it: then engines forget
            it. Fronts tell what they use with each heartbeat, and which catalogue they know.

Changes of one name come one after the other; at most ``MOST_VERSIONS`` of it are there at a time.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import trio

from lipsync_fast.errors import AvatarError, AvatarNotFoundError
from lipsync_fast.ipc.control import AvatarChanged, Change, ChangeAvatar
from lipsync_fast.logs import get_logger
from lipsync_fast.signals import Changes
from lipsync_fast.supervisor import replicas
from lipsync_fast.supervisor.avatar_catalogue import DEADLY, AvatarCatalogue
from lipsync_fast.supervisor.avatar_loader import AvatarLoader
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.control import ControlServer
from lipsync_fast.supervisor.roster import Roster
from lipsync_fast.supervisor.versions import OpenedPackage, Version

MOST_VERSIONS = 8
"""Versions of one name, with the one that is being loaded: sessions may be on as many."""
ROOM_S = 10.0
"""How long a load waits for the sessions of the oldest ones to end."""
LOAD_S = 60.0
"""How long engines may take."""
FRONTS_S = 3.0
"""How long fronts are waited for; they say four times a second which catalogue they know."""
MOST_CHANGES = 100
"""Changes that are under way or wait; more are refused."""

log = get_logger("lipsync.supervisor")


class AvatarRollout:
    """Makes the changes that people and folders ask for. One thread."""

    def __init__(
        self,
        roster: Roster,
        catalogue: AvatarCatalogue,
        loader: AvatarLoader,
        control: ControlServer,
    ) -> None:
        self._roster, self._catalogue = roster, catalogue
        self._loader, self._control = loader, control
        self._news = Changes()
        self._locks: dict[str, trio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    def on_news(self) -> None:
        """Something about children has changed: go on where that was waited for."""
        for version in self._catalogue.forget_unused(self._roster.fronts):
            self._loader.unload(version.key)
            log.info("avatar version has ended", avatar=version.name, version=version.number)
        self._news.notify()

    # ------------------------------------------------------------ what is asked for
    async def answer(self, asker: str, request: ChangeAvatar) -> None:
        """Do what somebody asks for, and tell them."""
        if request.action == "load":
            done = await self.load(request.name, request.path, request.anywhere)
        else:
            done = await self.unload(request.name)
        done.request = request.request
        log.info("asked to change an avatar", action=request.action, **_logged(done))
        self._control.publish_status()
        self._control.reply(asker, done)

    async def load(self, name: str, path: str = "", anywhere: bool = True) -> AvatarChanged:
        """Have sessions that begin from now on get what lies there."""
        folders = self._catalogue.folders
        if not folders.allows(name):
            return self._outcome(name, "missing", "there is no avatar of that name")
        async with self._turn(name) as granted:
            if not granted:
                return self._outcome(name, "late", "too many changes wait; try again later")
            try:
                if not path:
                    await trio.to_thread.run_sync(folders.update)
                package = await trio.to_thread.run_sync(folders.open, name, path, anywhere)
            except AvatarNotFoundError as error:
                return self._outcome(name, "missing", str(error))
            except AvatarError as error:
                return self._outcome(name, "refused", str(error))
            except Exception as error:  # not to end the server
                log.exception("cannot open an avatar", avatar=name)
                reason = f"cannot be opened ({type(error).__name__})"
                return self._outcome(name, "refused", reason)
            return await self._replace(name, package)

    async def _replace(self, name: str, package: OpenedPackage) -> AvatarChanged:
        """Make an opened package the current version of a name, where it is not that already."""
        current = self._catalogue.current.get(name)
        if current is not None and current.package.identity == package.identity:
            package.close()
            return self._outcome(name, "unchanged", "these files are what is served already")
        if not await self._wait_for_room(name):
            package.close()
            reason = f"sessions use {MOST_VERSIONS} versions of it; wait until some have ended"
            return self._outcome(name, "late", reason)
        return await self._try_candidate(self._catalogue.add_candidate(name, package))

    async def _try_candidate(self, version: Version) -> AvatarChanged:
        """Have engines load a version, and sessions get it."""
        name, reason = version.name, f"engines have not loaded it in {LOAD_S:g} s"
        state: Change = "late"
        try:
            with trio.move_on_after(LOAD_S):
                reason = await self._load_into_engines(version.key)
                state = "refused" if reason else "loaded"
        finally:
            if state != "loaded":
                self._loader.unload(version.key)
                self._catalogue.discard(version)
        if state != "loaded":
            return self._outcome(name, state, reason)
        self._catalogue.accept(version)
        self._loader.load(version.key)  # who was started meanwhile
        self._control.publish_engines()
        return self._outcome(name, "loaded", await self._wait_for_fronts())

    async def unload(self, name: str, refused: bool = True) -> AvatarChanged:
        """Let no session begin with it any more; see ``AvatarCatalogue.withdraw``."""
        if name == self._catalogue.folders.default:
            reason = "the default avatar cannot be unloaded; load another one in its place"
            return self._outcome(name, "refused", reason)
        async with self._turn(name) as granted:
            if not granted:
                return self._outcome(name, "late", "too many changes wait; try again later")
            if name in self._catalogue.unloaded:
                return self._outcome(name, "unchanged", "it is unloaded already")
            if name not in self._catalogue.current:
                try:
                    await trio.to_thread.run_sync(self._catalogue.folders.locate, name)
                except AvatarNotFoundError as error:
                    return self._outcome(name, "missing", str(error))
            self._catalogue.withdraw(name, refused)
            self._control.publish_engines()
            return self._outcome(name, "unloaded", await self._wait_for_fronts())

    def _outcome(self, name: str, state: Change, reason: str) -> AvatarChanged:
        current = self._catalogue.current.get(name)
        number = 0 if current is None else current.number
        return AvatarChanged(request="", name=name, state=state, version=number, reason=reason)

    # ------------------------------------------------------------ what is waited for
    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[bool]:
        """One change of a name at a time; False where too many wait already."""
        if self._waiting.total() >= MOST_CHANGES:
            yield False
            return
        self._waiting[name] += 1
        lock = self._locks.setdefault(name, trio.Lock())
        try:
            async with lock:
                yield True
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._locks[name]

    async def _wait_for_room(self, name: str) -> bool:
        """Whether one more version of a name may be there, now or soon."""
        with trio.move_on_after(ROOM_S):
            while self._catalogue.count(name) >= MOST_VERSIONS:
                await self._news.wait()
            return True
        return False

    async def _wait_for_fronts(self) -> str:
        """Wait until all fronts act by the newest catalogue; a sentence where one does not."""
        number = self._catalogue.number
        with trio.move_on_after(FRONTS_S):
            while any(
                front.ready_at is not None and front.front_load.catalogue < number
                for front in self._roster.fronts
            ):
                await self._news.wait()
            return ""
        return "a front has not heard of it yet, and will as soon as it listens"

    # ------------------------------------------------------------ engines
    async def _load_into_engines(self, key: str) -> str:
        """Have engines load a candidate; the reason why they cannot, or nothing.

        Its files may be such that who loads them dies. So one engine does it alone, and the others
        when it has.
        """
        for _ in range(DEADLY):
            canary = await self._choose_canary()
            self._loader.load_on(canary, key)
            await self._wait_for_answers([canary], key)
            if key in canary.avatars:
                break
            if canary.state != "gone":
                return _load_error(canary, key)
        else:
            return "engines died while they loaded it"
        asked = [
            engine
            for engine in replicas.initial_holders(key, self._roster.engines)
            if engine.is_working
        ]
        while True:
            for engine in asked:
                self._loader.load_on(engine, key)
            await self._wait_for_answers(asked, key)
            ready = [engine for engine in self._roster.engines if engine.state == "ready"]
            if any(key in engine.avatars for engine in ready):
                return ""
            left = [engine for engine in ready if key not in engine.load_errors]
            if ready and not left:
                return _load_error(ready[0], key)
            if not left:
                await self._news.wait()
            asked = sorted(left, key=replicas.memory_left)[-1:]

    async def _choose_canary(self) -> Child:
        """Who loads it first: a spare, else who is least busy."""
        while True:
            working = [engine for engine in self._roster.engines if engine.is_working]
            if working:
                return min(working, key=lambda e: (e.state != "spare", replicas.utilisation(e)))
            await self._news.wait()

    async def _wait_for_answers(self, engines: list[Child], key: str) -> None:
        """Wait until engines have said what became of it, or have died."""
        while any(e.state != "gone" and key in e.loading for e in engines):
            await self._news.wait()

    # ------------------------------------------------------------ folders
    async def follow(self, every_s: float, serving: trio.Event) -> None:
        """Have what is in stores once the server serves, and watch stores and folders from then on,
        until cancelled.

        Args:
            every_s: 0: nothing is watched.
        """
        folders = self._catalogue.folders
        if folders.follow_stores:
            await serving.wait()
            await trio.to_thread.run_sync(folders.update, abandon_on_cancel=True)
        if not every_s:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch, every_s)
            while folders.follow_stores:
                await trio.sleep(every_s)
                await trio.to_thread.run_sync(folders.update, abandon_on_cancel=True)

    async def watch(self, every_s: float) -> None:
        """Load what is new or replaced in the folders, and unload what is gone, until cancelled.

        Only what two looks in a row have seen alike: who writes a file there may not be done yet.
        """
        snapshot = self._catalogue.folders.snapshot
        settled = before = await trio.to_thread.run_sync(snapshot)
        while True:
            await trio.sleep(every_s)
            now = await trio.to_thread.run_sync(snapshot)
            for name, at in now.items():
                if before.get(name) == at != settled.get(name) and await self._load_watched(name):
                    settled = settled | {name: at}
            for name in [n for n in settled if n not in now and n not in before]:
                settled = {n: at for n, at in settled.items() if n != name}
                default = self._catalogue.folders.default
                if name in self._catalogue.current and name != default:
                    await self.unload(name, refused=False)
                    log.info("a watched avatar is gone", avatar=name)
            before = now

    async def _load_watched(self, name: str) -> bool:
        """Load what is new in a folder; False where that is to be tried again."""
        done = await self.load(name)
        write = log.info if done.state in ("loaded", "unchanged") else log.warning
        write("a watched avatar has changed", **_logged(done))
        return done.state != "late"


def _load_error(engine: Child, key: str) -> str:
    return engine.load_errors.reason(key) or "no engine has loaded it"


def _logged(done: AvatarChanged) -> dict[str, object]:
    """What became of a change, as fields of an event."""
    reason = {"reason": done.reason} if done.reason else {}
    return {"avatar": done.name, "state": done.state, "version": done.version, **reason}
