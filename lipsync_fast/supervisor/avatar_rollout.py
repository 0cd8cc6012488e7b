# SPDX-License-Identifier: Apache-2.0
"""Avatars that are loaded, replaced and unloaded while the server runs.

    load    the files are opened; one engine loads them, a spare where there is one; then the others
            do; then sessions that begin get them. Until then, nothing has changed for anybody.
    unload  sessions that begin are refused; those that are there go on.
    leaving a version that sessions cannot get any more, until no front uses it: then engines forget
            it. Fronts tell what they use with each heartbeat, and which catalogue they have heard.

Changes of one name come one after the other; at most ``MOST_VERSIONS`` of it are there at a time.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from lipsync_fast.avatars.identity import Identity, identity_of
from lipsync_fast.errors import AvatarError, AvatarNotFoundError
from lipsync_fast.ipc.control import AvatarChanged, Change, ChangeAvatar
from lipsync_fast.logs import get_logger
from lipsync_fast.supervisor import replicas
from lipsync_fast.supervisor.avatars import DEADLY, AvatarsInUse
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.control import Talk
from lipsync_fast.supervisor.roster import Roster
from lipsync_fast.supervisor.versions import Version

MOST_VERSIONS = 8
"""Of one name, with the one that is being loaded: sessions may be on as many different ones."""
ROOM_S = 10.0
"""How long a load waits for the sessions of the oldest ones to end."""
LOAD_S = 60.0
"""How long engines may take."""
HEARD_S = 3.0
"""How long fronts are waited for; they say four times a second what they have heard."""
MOST_CHANGES = 100
"""That are under way or wait; more are refused."""

log = get_logger("lipsync.supervisor")
Seen = dict[str, tuple[Path, Identity]]


class Changes:
    """Makes the changes that people and folders ask for. One thread."""

    def __init__(self, roster: Roster, avatars: AvatarsInUse, talk: Talk) -> None:
        self._roster, self._avatars, self._talk = roster, avatars, talk
        self._news = trio.Event()
        self._locks: dict[str, trio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    def look(self) -> None:
        """Something about children has changed: go on where that was waited for."""
        for version in self._avatars.ended(self._roster.fronts):
            self._talk.unload(version.key)
            log.info("avatar version has ended", avatar=version.name, version=version.number)
        self._news.set()
        self._news = trio.Event()

    # ------------------------------------------------------------ what is asked for
    async def answer(self, asker: str, wanted: ChangeAvatar) -> None:
        """Do what somebody wants, and tell them."""
        if wanted.action == "load":
            done = await self.load(wanted.name, wanted.path, wanted.anywhere)
        else:
            done = await self.unload(wanted.name)
        done.request = wanted.request
        log.info("asked to change an avatar", action=wanted.action, **_logged(done))
        self._talk.tell_status()
        self._talk.reply(asker, done)

    async def load(self, name: str, path: str = "", anywhere: bool = True) -> AvatarChanged:
        """Have sessions that begin from now on get what lies there."""
        if not self._avatars.allowed(name):
            return self._done(name, "missing", "there is no avatar of that name")
        async with self._alone(name) as may:
            if not may:
                return self._done(name, "late", "too many changes wait; try again later")
            try:
                place = await trio.to_thread.run_sync(self._avatars.open, name, path, anywhere)
            except AvatarNotFoundError as error:
                return self._done(name, "missing", str(error))
            except AvatarError as error:
                return self._done(name, "refused", str(error))
            current = self._avatars.current.get(name)
            if current is not None and current.place.identity == place.identity:
                place.close()
                return self._done(name, "unchanged", "these files are what is served already")
            if not await self._room(name):
                place.close()
                reason = f"sessions use {MOST_VERSIONS} versions of it; wait until some have ended"
                return self._done(name, "late", reason)
            return await self._replace(self._avatars.candidate(name, place))

    async def _replace(self, version: Version) -> AvatarChanged:
        """Have engines load a version, and sessions get it."""
        name, reason = version.name, f"engines have not loaded it in {LOAD_S:g} s"
        state: Change = "late"
        try:
            with trio.move_on_after(LOAD_S):
                reason = version.told(await self._into_engines(version.key))
                state = "refused" if reason else "loaded"
        finally:
            if state != "loaded":
                self._talk.unload(version.key)
                self._avatars.discard(version)
        if state != "loaded":
            return self._done(name, state, reason)
        self._avatars.accept(version)
        self._talk.ask_all(version.key)  # who was born meanwhile
        self._talk.tell_engines()
        return self._done(name, "loaded", await self._heard())

    async def unload(self, name: str, refused: bool = True) -> AvatarChanged:
        """Let no session begin with it any more; see ``AvatarsInUse.take_out``."""
        if name == self._avatars.default:
            reason = "the default avatar cannot be unloaded; load another one in its place"
            return self._done(name, "refused", reason)
        async with self._alone(name) as may:
            if not may:
                return self._done(name, "late", "too many changes wait; try again later")
            if name in self._avatars.unloaded:
                return self._done(name, "unchanged", "it is unloaded already")
            if name not in self._avatars.current:
                try:
                    await trio.to_thread.run_sync(self._avatars.find, name)
                except AvatarNotFoundError as error:
                    return self._done(name, "missing", str(error))
            self._avatars.take_out(name, refused)
            self._talk.tell_engines()
            return self._done(name, "unloaded", await self._heard())

    def _done(self, name: str, state: Change, reason: str) -> AvatarChanged:
        current = self._avatars.current.get(name)
        number = 0 if current is None else current.number
        return AvatarChanged(request="", name=name, state=state, version=number, reason=reason)

    # ------------------------------------------------------------ how
    @contextlib.asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[bool]:
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

    async def _room(self, name: str) -> bool:
        """Whether one more version of a name may be there, now or soon."""
        with trio.move_on_after(ROOM_S):
            while self._avatars.alive(name) >= MOST_VERSIONS:
                await self._news.wait()
            return True
        return False

    async def _heard(self) -> str:
        """Wait until all fronts act by the newest catalogue; a sentence where one does not."""
        number = self._avatars.catalogue
        with trio.move_on_after(HEARD_S):
            while any(
                front.ready_at is not None and front.front_load.catalogue < number
                for front in self._roster.fronts
            ):
                await self._news.wait()
            return ""
        return "a front has not heard of it yet, and will as soon as it listens"

    async def _into_engines(self, key: str) -> str:
        """Have engines load a candidate; the reason why they cannot, or nothing.

        Its files may be such that who loads them dies. So one engine does it alone, and the others
        when it has.
        """
        for _ in range(DEADLY):
            first = await self._canary(key)
            self._talk.ask(first, key)
            await self._answered([first], key)
            if key in first.avatars:
                break
            if first.state != "gone":
                return _error(first, key)
        else:
            return "engines died while they loaded it"
        asked = [e for e in replicas.first(key, self._roster.engines) if e.works]
        while True:
            for engine in asked:
                self._talk.ask(engine, key)
            await self._answered(asked, key)
            ready = [e for e in self._roster.engines if e.state == "ready"]
            if any(key in engine.avatars for engine in ready):
                return ""
            left = [e for e in ready if key not in e.errors]
            if ready and not left:
                return _error(ready[0], key)
            if not left:
                await self._news.wait()
            asked = sorted(left, key=replicas.memory_left)[-1:]

    async def _canary(self, key: str) -> Child:
        """Who loads it first: a spare, else who is least busy."""
        while True:
            working = [engine for engine in self._roster.engines if engine.works]
            if working:
                return min(working, key=lambda e: (e.state != "spare", replicas.busy(e)))
            await self._news.wait()

    async def _answered(self, engines: list[Child], key: str) -> None:
        """Wait until engines have said what became of it, or have died."""
        while any(e.state != "gone" and key in e.asked for e in engines):
            await self._news.wait()

    # ------------------------------------------------------------ folders
    async def watch(self, every_s: float) -> None:
        """Load what is new or replaced in the folders, and unload what is gone, until cancelled.

        Only what two looks in a row have seen alike: who writes a file there may not be done yet.
        """
        settled = before = await trio.to_thread.run_sync(self._seen)
        while True:
            await trio.sleep(every_s)
            now = await trio.to_thread.run_sync(self._seen)
            for name, at in now.items():
                if before.get(name) == at != settled.get(name) and await self._found(name):
                    settled = settled | {name: at}
            for name in [n for n in settled if n not in now and n not in before]:
                settled = {n: at for n, at in settled.items() if n != name}
                if name in self._avatars.current and name != self._avatars.default:
                    await self.unload(name, refused=False)
                    log.info("a watched avatar is gone", avatar=name)
            before = now

    async def _found(self, name: str) -> bool:
        """Load what a look has found; False where that is to be tried again."""
        done = await self.load(name)
        write = log.info if done.state in ("loaded", "unchanged") else log.warning
        write("a watched avatar has changed", **_logged(done))
        return done.state != "late"

    def _seen(self) -> Seen:
        """What lies in the folders now, the first of each name (in a thread)."""
        seen: Seen = {}
        for name, path in self._avatars.folders.candidates():
            identity = identity_of(path)
            if name not in seen and identity is not None and self._avatars.allowed(name):
                seen[name] = path, identity
        return seen


def _error(engine: Child, key: str) -> str:
    return engine.errors.get(key, ("no engine has loaded it", 0.0))[0]


def _logged(done: AvatarChanged) -> dict[str, object]:
    """What became of a change, as fields of an event."""
    reason = {"reason": done.reason} if done.reason else {}
    return {"avatar": done.name, "state": done.state, "version": done.version, **reason}
