# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of the control socket: who is listened to, and what is published to fronts.

Nothing here waits for a child: what one does not read is lost, and its silence is what counts.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from lipsync_fast.config_load import without_secrets
from lipsync_fast.errors import ControlError, ServerError
from lipsync_fast.ipc.control import (
    AnyMessage,
    ChangeAvatar,
    Engines,
    SettingsReply,
    SettingsRequest,
    StatusReply,
    StatusRequest,
)
from lipsync_fast.ipc.control_socket import Hub
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.logs import get_logger
from lipsync_fast.supervisor.avatar_catalogue import AvatarCatalogue
from lipsync_fast.supervisor.children import Child
from lipsync_fast.supervisor.roster import Roster
from lipsync_fast.supervisor.run_folder import RunFolder
from lipsync_fast.supervisor.status import (
    FrameRates,
    ServerFacts,
    Usable,
    avatar_statuses,
    engine_infos,
    most_speakers,
    server_status,
)

MOST_MESSAGES = 100
"""Messages that are taken before other tasks get their turn."""
KEEP_S = 1.0
"""How often it is looked whether the control socket is still there."""
log = get_logger("lipsync.supervisor")

OnMessage = Callable[[Child, AnyMessage], None]
OnChangeAvatar = Callable[[str, ChangeAvatar], None]


class ControlServer:
    """Receives from children and from ``lipsync-fast status``, and sends to them. One thread.

    Args:
        on_message: called with every message of a child that lives.
        on_change_avatar: called with what is to become of an avatar, and the name of who asks.
    """

    def __init__(
        self,
        hub: Hub,
        roster: Roster,
        catalogue: AvatarCatalogue,
        facts: ServerFacts,
        on_message: OnMessage,
        on_change_avatar: OnChangeAvatar,
    ) -> None:
        self._hub, self._roster, self._catalogue, self._facts = hub, roster, catalogue, facts
        self._on_message, self._on_change_avatar = on_message, on_change_avatar
        self.rates, self._usable = FrameRates(), Usable()
        self.unreadable_loads = 0
        """Loads of fronts that could not be read."""

    # ------------------------------------------------------------ receiving
    async def run(self) -> None:
        """Hand on what comes, until cancelled."""
        while True:
            if self.receive():
                await trio.lowlevel.checkpoint()
                continue
            await self._hub.wait()

    def receive(self) -> bool:
        """Hand on what has come; True when there may be more."""
        for count, (name, message) in enumerate(self._hub.received(), 1):
            child = self._roster.by_name(name)
            if isinstance(message, StatusRequest):
                self._hub.send(name, _reply(self.status()))
            elif isinstance(message, SettingsRequest):
                covered = msgspec.msgpack.encode(without_secrets(self._facts.config))
                self._hub.send(name, SettingsReply(settings=msgspec.Raw(covered)))
            elif isinstance(message, ChangeAvatar):
                self._on_change_avatar(name, message)
            elif child is not None:  # else it has died since
                self._on_message(child, message)
            if count >= MOST_MESSAGES:
                return True
        return False

    async def keep_open(self, folder: RunFolder) -> None:
        """Make the control socket again whenever somebody has removed it, until cancelled."""
        told = ""
        while True:
            await trio.sleep(KEEP_S)
            try:
                if not folder.renew() and self._hub.is_there:
                    continue
                self._hub.open()
                log.warning("the control socket was removed; it is made again", folder=folder.path)
                told = ""
            except (ServerError, ControlError) as error:
                if str(error) != told:
                    told = str(error)
                    log.error("without its control socket no child can be replaced", reason=told)

    # ------------------------------------------------------------ sending
    def send(self, child: Child, message: AnyMessage) -> None:
        """Send to a child; nothing to one that has not said Hello."""
        if child.greeted:
            self.reply(child.name, message)

    def reply(self, name: str, message: AnyMessage) -> None:
        """Send to whoever has asked, a child or not."""
        self._hub.send(name, message)

    # ------------------------------------------------------------ publishing
    def status(self) -> ServerStatus:
        """The server as it is now."""
        ignored = self._hub.ignored + self.unreadable_loads
        status = server_status(
            self._facts, self._roster.state, self._roster.last, self.rates, ignored, self._usable
        )
        status.avatars = avatar_statuses(self._catalogue, self._roster.engines, self._roster.fronts)
        return status

    def publish_status(self) -> ServerStatus:
        """Tell fronts how the server does; what they were told."""
        status = self.status()
        reply = _reply(status)
        for front in self._roster.fronts:
            self.send(front, reply)
        return status

    def publish_engines(self) -> None:
        """Tell fronts which engines and avatars there are, and how many may speak."""
        engines, fronts, catalogue = self._roster.engines, self._roster.fronts, self._catalogue
        infos = engine_infos(engines, catalogue)
        speakers = most_speakers(self._facts.config, engines, self._usable)
        speaking = sum(front.front_load.speaking for front in fronts)
        encoding = sum(front.front_load.encoding for front in fronts)
        avatars, unloaded = catalogue.for_fronts(), sorted(catalogue.unloaded)
        for front in fronts:
            message = Engines(
                engines=infos,
                speakers=speakers,
                others=speaking - front.front_load.speaking,
                encoding=max(0.0, encoding - front.front_load.encoding),
                avatars=avatars,
                unloaded=unloaded,
                refused=catalogue.errors.current(),
                catalogue=catalogue.number,
            )
            self.send(front, message)


def _reply(status: ServerStatus) -> StatusReply:
    return StatusReply(status=msgspec.Raw(msgspec.msgpack.encode(status)))
