# SPDX-License-Identifier: Apache-2.0
"""What a front process offers to its protocols: avatars, engines, numbers, and what is refused."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import trio

from lipsync_fast.arrays import F32
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.signing import trusted_keys
from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import (
    AvatarError,
    AvatarNotFoundError,
    EngineLostError,
    LipsyncError,
    OverloadedError,
)
from lipsync_fast.frontend.avatars import Catalogue, Held
from lipsync_fast.frontend.engines.latencies import Latencies
from lipsync_fast.frontend.engines.pool import EnginePool, Pending
from lipsync_fast.frontend.engines.trace import Trace
from lipsync_fast.frontend.legacy.counts import LegacyCounts
from lipsync_fast.frontend.legacy.video import AvatarVideos
from lipsync_fast.frontend.playout.frame_cache import KnownSounds
from lipsync_fast.frontend.playout.idle_rate import ALONE, SHARED, RestRate
from lipsync_fast.frontend.playout.playout import Pace
from lipsync_fast.frontend.playout.timer import Clock
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.control import AnyMessage, AvatarChanged, ChangeAvatar, Engines, WantAvatar
from lipsync_fast.ipc.messages import Answer, Job, Look, Speech, Status
from lipsync_fast.ipc.status import FrontLoad, ServerStatus
from lipsync_fast.machine import are_shared
from lipsync_fast.signals import Changes
from lipsync_fast.timing import NS_PER_S

Result = TypeVar("Result")
LOAD_TIMEOUT_S = 30.0
"""How long an engine may take to load an avatar that a client asks for."""
CHANGE_S = 75.0
"""How long the supervisor may take to load or unload an avatar; it gives up before."""
MOST_CHANGES = 50
"""That are waited for in this front."""
REQUEST_NS = 10 * NS_PER_S
"""A single request is answered within this, or fails."""
MOST_REQUESTS = 512
"""Single requests that may wait in this front."""
NAMES_S = 2.0
"""How long a list of avatars is believed: looking for them opens each."""
RETRY_S = 2.0
"""What a client that was refused is told to wait."""


@dataclass(frozen=True, slots=True)
class Made:
    """A picture, as an engine made it.

    Attributes:
        jpeg: the picture.
        box: where it lies in the avatar's frame.
        taken_ns, made_ns: when the engine took the job up and was done, CLOCK_MONOTONIC.
    """

    jpeg: bytes
    box: Rect
    taken_ns: int
    made_ns: int


class Services:
    """One for a front process. All methods: its one thread."""

    def __init__(
        self, config: ServeConfig, pool: EnginePool, tell: Callable[[AnyMessage], None]
    ) -> None:
        self.config, self.pool = config, pool
        self.clock = Clock()
        self.load = FrontLoad()
        self.playouts: dict[int, Pace] = {}
        """Of all sessions, by their numbers: they know how much sound waits."""
        self.rest = RestRate(
            SHARED if are_shared() else ALONE,
            lambda: pool.turnaround.ns,
            lambda: (self.load.speaking, self.speakers - self.others, self.load.sessions),
        )
        self.latencies = Latencies()
        self.trace = Trace(config.log.trace) if config.log.trace else None
        self.legacy = LegacyCounts()
        """What the old protocols' statistics tell."""
        self.videos = AvatarVideos()
        self.known = KnownSounds(config.utterances, lambda: pool.maker)
        self.status: ServerStatus | None = None
        self.speakers = 1
        """How many sessions may speak at once, in all fronts."""
        self.others = 0
        """How many speak in other fronts."""
        self.draining = trio.Event()
        self._tell = tell
        keys = trusted_keys(config.avatars.require_signed)
        self._library = AvatarLibrary(config.avatars.folders, keys)
        self.catalogue = Catalogue(keys)
        self._changes: dict[str, list[AvatarChanged]] = {}
        self._changed = Changes()
        self._streams, self._sessions = itertools.count(1), itertools.count(1)
        self._requests = 0
        self._names: list[str] = []
        self._names_until = 0.0

    # ------------------------------------------------------------ avatars
    @property
    def default_avatar(self) -> str:
        """The avatar of clients that name none."""
        return self.config.avatars.default

    def heard(self, told: Engines) -> None:
        """The supervisor has told of engines and avatars."""
        self.speakers, self.others = max(1, told.speakers), told.others
        if told.catalogue != self.catalogue.number:
            self._names_until = 0.0
        self.catalogue.hear(told)
        self.pool.update(told.engines)

    def load_now(self) -> FrontLoad:
        """What this front does, with which avatars it uses."""
        self.load.avatars, self.load.catalogue = dict(self.catalogue.uses), self.catalogue.number
        self.load.utterances = dict(self.known.counts)
        self.load.queued_s = sum(playout.queued_s for playout in self.playouts.values())
        return self.load

    def avatar_names(self) -> list[str]:
        """Names of the avatars that can be used, the default one first."""
        now = time.monotonic()
        if now >= self._names_until:
            number = self.catalogue.number
            there = {a.name for a in self._library.list() if a.error is None}
            there |= {*self.catalogue.names}
            names = sorted(n for n in there - self.catalogue.unloaded if self._allowed(n))
            default = self.default_avatar
            self._names = sorted(names, key=lambda name: name != default)
            # Only now: who asks meanwhile, in another thread, looks for itself.
            unchanged = number == self.catalogue.number
            self._names_until = now + NAMES_S if unchanged else 0.0
        return list(self._names)

    def _allowed(self, name: str) -> bool:
        only = self.config.avatars.only
        return not only or name in only or name == self.default_avatar

    def peek(self, name: str) -> AvatarPackage:
        """An avatar's package as it is now, only to look at; '' is the default one.

        Raises:
            AvatarNotFoundError: there is none of that name; a path is no name here.
            AvatarError: it cannot be used.
        """
        name = self._usable(name)
        version = self.catalogue.current(name)
        if version is not None:
            return self.catalogue.open(version)
        try:
            return self.catalogue.look(self._library.find(name, here=name == self.default_avatar))
        except AvatarNotFoundError:  # its message names folders, which are not a client's business
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}") from None

    def _usable(self, name: str) -> str:
        """The name of an avatar that clients may use.

        Raises:
            AvatarError: they may not.
        """
        name = name or self.default_avatar
        by_path = os.sep in name or name.endswith(".lsa") or name.startswith(".")
        if name != self.default_avatar and (by_path or not self._allowed(name)):
            raise AvatarNotFoundError(f"there is no avatar {name[:64]!r}")
        if name in self.catalogue.unloaded:
            raise AvatarError(f"avatar {name[:64]!r} is unloaded: it cannot be used at present")
        return name

    async def avatar(self, name: str) -> Held:
        """The version of an avatar that sessions get now, and an engine has loaded it.

        Release it when nothing of it is needed any more.

        Raises:
            AvatarNotFoundError, AvatarError: it cannot be used.
            EngineLostError: no engine has loaded it in time.
        """
        name = self._usable(name)
        version = self.catalogue.current(name)
        if version is not None and self.pool.holds(version.key):
            return self.catalogue.hold(version)
        if version is None:
            self.peek(name)  # what is not there, or broken, needs no engine
        self._tell(WantAvatar(name=name))
        with trio.move_on_after(LOAD_TIMEOUT_S):
            return await self._loaded(name)
        raise EngineLostError(f"no engine has loaded avatar {name!r} within {LOAD_TIMEOUT_S:g} s")

    async def _loaded(self, name: str) -> Held:
        """Wait until an engine has loaded an avatar, whichever version is current then."""
        while True:
            version = self.catalogue.current(self._usable(name))
            if version is not None and self.pool.holds(version.key):
                return self.catalogue.hold(version)
            error = self.catalogue.refused(name)
            if version is not None:
                error = self.pool.error(version.key)
            if error is not None:
                raise AvatarError(f"avatar {name!r} cannot be used: {error}")
            await self.pool.changed()

    async def change_avatar(
        self, action: Literal["load", "unload"], name: str, path: str = ""
    ) -> AvatarChanged:
        """Have an avatar loaded, replaced or unloaded, for the whole server.

        Args:
            path: of its package, in one of the folders of avatars; looked for where empty.

        Raises:
            OverloadedError: too many such changes wait already.
            EngineLostError: the supervisor has not answered.
        """
        if len(self._changes) >= MOST_CHANGES:
            raise OverloadedError("too many changes of avatars wait; try again later")
        request = f"{os.getpid()}-{next(self._streams)}"
        answers = self._changes[request] = []
        self._tell(ChangeAvatar(request=request, action=action, name=name, path=path))
        try:
            with trio.move_on_after(CHANGE_S):
                while not answers:
                    await self._changed.wait()
                return answers[0]
        finally:
            del self._changes[request]
        raise EngineLostError(f"the server has not answered within {CHANGE_S:g} s")

    def avatar_changed(self, told: AvatarChanged) -> None:
        """The supervisor has answered."""
        if told.request in self._changes:
            self._changes[told.request].append(told)
            self._changed.notify()

    # ------------------------------------------------------------ numbers
    def new_stream(self) -> int:
        """A number for a sound that no other sound of this process has."""
        return next(self._streams)

    def new_session(self) -> int:
        """A number for a session that no other session of this process has."""
        return next(self._sessions)

    def margin_ns(self) -> int:
        """From the moment that a frame's sound is there to its slot: what engines take now."""
        live = self.config.live
        return self.pool.turnaround.margin_ns(live.margin_ms, live.margin_most_ms)

    # ------------------------------------------------------------ admission
    def may_speak(self) -> bool:
        """Whether one more session may begin to speak now."""
        return self.load.speaking + self.others < self.speakers and not self.draining.is_set()

    def overloaded(self) -> float | None:
        """Seconds after which to try again, where no more connections are taken now."""
        full = self.load.connections >= self.config.limits.sessions
        return RETRY_S if full or self.draining.is_set() else None

    def refused(self, reason: str) -> None:
        """Count what was refused."""
        self.load.refused[reason] = self.load.refused.get(reason, 0) + 1

    async def unless_draining(self, wait: Callable[[], Awaitable[Result]]) -> Result | None:
        """What ``wait`` gives; None as soon as the server drains."""
        result: Result | None = None
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def until_drained() -> None:
                await self.draining.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_drained)
            try:
                result = await wait()
            except Exception as error:  # raised below: a nursery would wrap it
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return result

    # ------------------------------------------------------------ single pictures
    async def make(
        self,
        avatar: str,
        picture: int,
        look: Look,
        speech: Speech | None,
        pcm: F32,
        session: int = 0,
    ) -> Made:
        """Have one picture made, whatever happens to engines meanwhile.

        Args:
            avatar: the key of a version that is held.
            picture: index of the avatar's frame.
            look: how it is encoded.
            speech: what is said; None for the avatar's own picture.
            pcm: the samples that ``speech`` sees, 16 kHz mono.
            session: from ``new_session``: keeps a client's pictures at one engine, whose caches
                know its sound; 0 for none.

        Raises:
            OverloadedError: too many wait already.
            EngineLostError: none could make it in time.
            LipsyncError: it cannot be made; says why.
        """
        if self._requests >= MOST_REQUESTS:
            raise OverloadedError(f"more than {MOST_REQUESTS} requests wait; try again later")
        self._requests += 1
        done = trio.Event()
        result: list[tuple[Answer, bytes]] = []

        def answered(answer: Answer, jpeg: memoryview) -> None:
            result.append((answer, bytes(jpeg)))
            done.set()

        deadline = time.monotonic_ns() + REQUEST_NS
        number = next(self._streams)  # any number that is new
        job = Job(session, 0, number, avatar, picture, deadline, look, speech)
        self.pool.submit(Pending(job, pcm, answered, lambda job: job))
        try:
            with trio.move_on_after(REQUEST_NS / NS_PER_S + 1):
                await done.wait()
        finally:
            self._requests -= 1
        if not result or result[0][0].status == Status.SKIPPED:
            raise EngineLostError(
                f"no engine has made the picture within {REQUEST_NS // NS_PER_S} s"
            )
        answer, jpeg = result[0]
        if answer.status == Status.FAILED:
            raise LipsyncError(answer.reason)
        return Made(jpeg, answer.box, answer.taken_ns, answer.made_ns)

    def close(self) -> None:
        """Forget the mapped packages, and close what is kept of utterances."""
        self.known.close()
        self.catalogue.close()


def retry_after(seconds: float) -> str:
    """The value of a Retry-After header."""
    return str(max(1, math.ceil(seconds)))
