# SPDX-License-Identifier: Apache-2.0
"""What is said over the control socket: to whom, and how it is listened to.

Nothing here waits for a child: what one does not read is lost, and its silence is what counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import trio

from lipsync_fast.errors import AvatarNotFoundError
from lipsync_fast.ipc.control import (
    AnyMessage,
    AvatarState,
    Engines,
    Hub,
    LoadAvatar,
    StatusReply,
    StatusRequest,
)
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.supervisor import replicas
from lipsync_fast.supervisor.avatars import AvatarsInUse
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.report import About, Rates, engine_infos, server_status, speakers
from lipsync_fast.supervisor.roster import Roster

MOST_MESSAGES = 100
"""Taken before other tasks get their turn; also avatars that are looked for at a time."""

log = logging.getLogger("lipsync.supervisor")
Heard = Callable[[Child, AnyMessage], None]


class Talk:
    """The control socket in the supervisor's hands. One thread.

    Args:
        heard: called with every message of a child that lives.
    """

    def __init__(
        self, hub: Hub, roster: Roster, avatars: AvatarsInUse, about: About, heard: Heard
    ) -> None:
        self._hub, self._roster, self._avatars, self._about = hub, roster, avatars, about
        self._heard = heard
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

    def status(self) -> ServerStatus:
        """The server as it is now."""
        ignored = self._hub.ignored + self.unreadable
        return server_status(
            self._about, self._roster.state, self._roster.last, self.rates, ignored
        )

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
        for front in fronts:
            others = speaking - front.front_load.speaking
            self.send(front, Engines(engines=infos, speakers=most, others=others))

    # ------------------------------------------------------------ avatars
    def want(self, name: str) -> bool:
        """A front needs an avatar. True when it is to be looked for (``look_for``)."""
        if name in self._avatars.paths:
            self._ask_all(name)
            return False
        if name in self._looked_for or len(self._looked_for) >= MOST_MESSAGES:
            return False
        self._looked_for.add(name)
        return True

    async def look_for(self, name: str) -> None:
        """Find an avatar and have engines load it, or tell fronts that there is none."""
        try:
            path = await trio.to_thread.run_sync(self._avatars.find, name)
        except AvatarNotFoundError as error:
            self._avatars.refuse(name, str(error))
        else:
            self._avatars.use(name, path)
            self._ask_all(name)
        self._looked_for.discard(name)
        self.tell_engines()

    def ask_missing(self, engine: Child) -> None:
        """Have an engine load what has come into use since it was born."""
        for name in self._avatars.paths:
            if engine.has_room or name == self._avatars.default:
                self._ask(engine, name)

    def ask_where_needed(self) -> None:
        """Have more engines load the avatars that those which hold them can hardly serve."""
        for name in self._avatars.paths:
            engine = replicas.helper(name, self._roster.engines)
            if engine is not None:
                self._ask(engine, name)

    def _ask_all(self, name: str) -> None:
        for engine in replicas.first(name, self._roster.engines):
            self._ask(engine, name)

    def _ask(self, engine: Child, name: str) -> None:
        if engine.greeted and name not in engine.avatars and name not in engine.asked:
            engine.asked.add(name)
            engine.errors.pop(name, None)
            self._avatars.shared.offer(engine, [name])
            self.send(engine, LoadAvatar(name=name, path=self._avatars.paths[name]))

    def avatar_state(self, engine: Child, told: AvatarState) -> None:
        """An engine has loaded an avatar, or cannot."""
        others = [other for other in self._roster.engines if other is not engine]
        self._avatars.answered(engine, told.name, told.error, others)
        if told.error:
            fields = {"child": engine.name, "avatar": told.name, "why": told.error}
            log.error("cannot load an avatar", extra={"fields": fields})
        self.tell_engines()
