# SPDX-License-Identifier: Apache-2.0
"""What is said over the control socket: to whom, and how it is listened to.

Nothing here waits for a child: what one does not read is lost, and its silence is what counts.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from lipsync_fast.errors import AvatarError
from lipsync_fast.ipc.control import (
    AnyMessage,
    AvatarState,
    ChangeAvatar,
    Engines,
    Hub,
    LoadAvatar,
    StatusReply,
    StatusRequest,
    UnloadAvatar,
)
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.logs import get_logger
from lipsync_fast.supervisor import replicas
from lipsync_fast.supervisor.avatars import AvatarsInUse
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.roster import Roster
from lipsync_fast.supervisor.status import (
    About,
    Rates,
    avatar_statuses,
    engine_infos,
    server_status,
    speakers,
)

MOST_MESSAGES = 100
"""Taken before other tasks get their turn; also avatars that are looked for at a time."""

log = get_logger("lipsync.supervisor")
Heard = Callable[[Child, AnyMessage], None]
ToChange = Callable[[str, ChangeAvatar], None]


class Talk:
    """The control socket in the supervisor's hands. One thread.

    Args:
        heard: called with every message of a child that lives.
        to_change: called with what is to become of an avatar, and the name of who wants that.
    """

    def __init__(
        self,
        hub: Hub,
        roster: Roster,
        avatars: AvatarsInUse,
        about: About,
        heard: Heard,
        to_change: ToChange,
    ) -> None:
        self._hub, self._roster, self._avatars, self._about = hub, roster, avatars, about
        self._heard, self._to_change = heard, to_change
        self._nap = trio.CancelScope()
        self._looked_for: set[str] = set()
        self.rates = Rates()
        self.unreadable = 0
        """Loads of fronts that could not be read."""

    # ------------------------------------------------------------ listening
    async def listen(self) -> None:
        """Hand on what comes, until cancelled."""
        while True:
            if self.take():
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope() as self._nap:
                await trio.lowlevel.wait_readable(self._hub.fd)

    def take(self) -> bool:
        """Hand on what has come; True when there may be more."""
        for count, (name, message) in enumerate(self._hub.received(), 1):
            child = self._roster.find(name)
            if isinstance(message, StatusRequest):
                self._hub.send(name, self._status_reply())
            elif isinstance(message, ChangeAvatar):
                self._to_change(name, message)
            elif child is not None:  # else it has died since
                self._heard(child, message)
            if count >= MOST_MESSAGES:
                return True
        return False

    # ------------------------------------------------------------ telling
    def send(self, child: Child, message: AnyMessage) -> None:
        """Send to a child; nothing to one that has not said Hello."""
        if child.greeted:
            self._hub.send(child.name, message)
            self._nap.cancel()  # sending may swallow the edge of the socket's descriptor

    def reply(self, name: str, message: AnyMessage) -> None:
        """Send to whoever has asked, a child or not."""
        self._hub.send(name, message)
        self._nap.cancel()

    def status(self) -> ServerStatus:
        """The server as it is now."""
        ignored = self._hub.ignored + self.unreadable
        status = server_status(
            self._about, self._roster.state, self._roster.last, self.rates, ignored
        )
        status.avatars = avatar_statuses(self._avatars, self._roster.engines, self._roster.fronts)
        return status

    def _status_reply(self) -> StatusReply:
        return StatusReply(status=msgspec.Raw(msgspec.msgpack.encode(self.status())))

    def tell_status(self) -> None:
        """Tell fronts how the server does."""
        reply = self._status_reply()
        for front in self._roster.fronts:
            self.send(front, reply)

    def tell_engines(self) -> None:
        """Tell fronts which engines there are, and how many may speak."""
        engines, fronts = self._roster.engines, self._roster.fronts
        infos = engine_infos(engines, self._avatars)
        most = speakers(self._about.config, engines)
        speaking = sum(front.front_load.speaking for front in fronts)
        avatars, unloaded = self._avatars.told(), sorted(self._avatars.unloaded)
        for front in fronts:
            told = Engines(
                engines=infos,
                speakers=most,
                others=speaking - front.front_load.speaking,
                avatars=avatars,
                unloaded=unloaded,
                refused=self._avatars.errors,
                catalogue=self._avatars.catalogue,
            )
            self.send(front, told)

    # ------------------------------------------------------------ avatars
    def want(self, name: str) -> bool:
        """A front needs an avatar. True when it is to be looked for (``look_for``)."""
        version = self._avatars.current.get(name)
        if version is not None:
            self.ask_all(version.key)
            return False
        full = len(self._looked_for) >= MOST_MESSAGES
        if full or name in self._looked_for or name in self._avatars.unloaded:
            return False
        self._looked_for.add(name)
        return True

    async def look_for(self, name: str) -> None:
        """Find an avatar and have engines load it, or tell fronts that there is none."""
        try:
            place = await trio.to_thread.run_sync(self._avatars.open, name)
        except AvatarError as error:
            self._avatars.refuse_name(name, str(error))
        else:
            if name in self._avatars.current or name in self._avatars.unloaded:
                place.close()  # somebody was faster
            else:
                self.ask_all(self._avatars.use(name, place).key)
        self._looked_for.discard(name)
        self.tell_engines()

    def ask_missing(self, engine: Child) -> None:
        """Have an engine load what has come into use since it was born."""
        for key in self._avatars.keys:
            if engine.has_room or key == self._avatars.default_key:
                self.ask(engine, key)

    def ask_where_needed(self) -> None:
        """Have more engines load the avatars that those which hold them can hardly serve."""
        for key in self._avatars.keys:
            engine = replicas.helper(key, self._roster.engines)
            if engine is not None:
                self.ask(engine, key)

    def ask_all(self, key: str) -> None:
        """Have the engines load a version that are to."""
        for engine in replicas.first(key, self._roster.engines):
            self.ask(engine, key)

    def ask(self, engine: Child, key: str) -> None:
        """Have an engine load a version, unless it has or is about to."""
        if not engine.greeted or key in engine.avatars or key in engine.asked:
            return
        path = self._avatars.path_of(key)
        if path is not None:
            engine.asked.add(key)
            engine.errors.pop(key, None)
            self._avatars.shared.offer(engine, [key])
            self.send(engine, LoadAvatar(name=key, path=path))

    def unload(self, key: str) -> None:
        """Have all engines forget a version, which nobody needs any more."""
        for engine in self._roster.engines:
            self._unload(engine, key)

    def _unload(self, engine: Child, key: str) -> None:
        engine.avatars.discard(key)
        engine.asked.discard(key)
        engine.errors.pop(key, None)
        self.send(engine, UnloadAvatar(name=key))

    def forget_gone(self, engine: Child) -> None:
        """Have an engine forget what has left while it loaded that."""
        known = self._avatars.versions.keys() | self._avatars.candidates.keys()
        for key in engine.avatars - known:
            self._unload(engine, key)

    def avatar_state(self, engine: Child, told: AvatarState) -> None:
        """An engine has loaded an avatar, or cannot."""
        others = [other for other in self._roster.engines if other is not engine]
        key, error = told.name, told.error
        version = self._avatars.versions.get(key) or self._avatars.candidates.get(key)
        if error and version is not None:
            error = version.told(error)
        self._avatars.answered(engine, key, error, others)
        if error:
            log.error("cannot load an avatar", child=engine.name, avatar=key, reason=error)
        self.forget_gone(engine)
        self.tell_engines()
