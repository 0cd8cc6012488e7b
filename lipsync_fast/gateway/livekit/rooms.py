# SPDX-License-Identifier: Apache-2.0
"""Avatars in rooms of LiveKit: who may be called where, and those that are there."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from lipsync_fast.config import LiveKit
from lipsync_fast.errors import LipsyncError, PeerError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.fronts import Fronts
from lipsync_fast.logs import get_logger
from lipsync_fast.names import shown as printable
from lipsync_fast.tokens.subject import Subject
from lipsync_fast_client.connecting import Connecting, connect

log = get_logger("lipsync.gateway")
PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
MOST_TOKEN = 8_192
JOIN_S = 15.0
"""How long it may take until an avatar is in its room, or has failed to be."""

Join = Callable[..., Awaitable[str]]
"""``livekit.plugins.lipsync_fast.join``."""


@dataclass(eq=False)
class Room:
    """An avatar that is in a room, or on its way.

    Attributes:
        where: the LiveKit server's host; name: what the agent calls the room.
        account: of who has asked for it; shown: what fronts are shown for it.
    """

    where: str
    name: str
    avatar: str
    account: str = ""
    shown: str = field(default="", repr=False)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    begun_at: float = field(default_factory=time.monotonic)
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[str] | None = None

    def described(self) -> dict[str, Any]:
        """For who asks."""
        return {
            "session": self.id,
            "livekit": self.where,
            "room_name": self.name,
            "avatar": self.avatar,
            "state": "joined" if self.joined.is_set() else "joining",
            "seconds": round(time.monotonic() - self.begun_at, 1),
        }


class Rooms:
    """All avatars in rooms. One loop.

    Args:
        join: takes an avatar into a room, and returns why it has left.
        token: what fronts ask clients for.
    """

    def __init__(
        self, config: LiveKit, fronts: Fronts, token: str, counts: Counts, join: Join
    ) -> None:
        self._config, self._fronts, self._token = config, fronts, token
        self._counts, self._join = counts, join
        self._rooms: dict[str, Room] = {}
        self._draining = False

    def of(self, who: Subject) -> list[Room]:
        """Those that somebody has asked for; of who has no name, all."""
        rooms = self._rooms.values()
        return [room for room in rooms if not who.name or room.account == who.account]

    async def begin(
        self, url: str, token: str, name: str, avatar: str, who: Subject, shown: str
    ) -> Room:
        """Have an avatar join; returns once it is there.

        Args:
            who: asks; shown: what fronts are shown for it, the server's own token where empty.

        Raises:
            PeerError: it may not, or cannot; ``status`` is the answer's.
        """
        where = self._allowed(url)
        _check_token(token)
        if self._draining:
            raise PeerError("the server is going away", 503)
        if len(self._rooms) >= self._config.most:
            raise PeerError("as many avatars are in rooms as may be; try again later", 503)
        room = Room(where, name, avatar, who.account, shown)
        self._rooms[room.id] = room
        room.task = asyncio.create_task(self._be_there(room, url, token))
        arrives = asyncio.create_task(room.joined.wait())
        try:
            await asyncio.wait(
                [room.task, arrives], timeout=JOIN_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            arrives.cancel()
        if room.joined.is_set():
            return room
        if not room.task.done():
            room.task.cancel()
            raise PeerError(f"the room was not joined within {JOIN_S:g} s", 502)
        try:
            why = room.task.result()
        except (LipsyncError, ValueError) as error:
            raise PeerError(str(error), 502 if isinstance(error, LipsyncError) else 400) from None
        raise PeerError(why, 502)

    async def end(self, id_: str, who: Subject) -> bool:
        """Have an avatar leave; whether it was there."""
        room = next((room for room in self.of(who) if room.id == id_), None)
        if room is None or room.task is None:
            return False
        room.task.cancel()
        await asyncio.wait([room.task], timeout=5.0)
        return True

    async def drain(self, seconds: float) -> None:
        """Take nobody new; those that are left after so many seconds leave."""
        self._draining = True
        tasks = [room.task for room in self._rooms.values() if room.task is not None]
        if not tasks:
            return
        if seconds > 0:
            await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5.0)

    def _allowed(self, url: str) -> str:
        """The host that a URL names, with its port.

        Raises:
            PeerError: it is no URL, or nobody may be called there.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            host = None
        if not host or parts.username is not None or not url.isprintable():
            raise PeerError("livekit_url: expected wss://HOST or ws://HOST:PORT")
        name = f"[{host}]" if ":" in host else host
        if not {name, f"{name}:{port}"} & set(self._config.hosts):
            raise PeerError(f"livekit_url: {printable(name)[:80]} is not in livekit.hosts", 403)
        return f"{name}:{port}"

    async def _be_there(self, room: Room, url: str, token: str) -> str:
        with self._counts.call("session"):
            try:
                log.info("joins a room", session=room.id, livekit=room.where, room=room.name)
                why = await self._join(
                    url,
                    token,
                    on_joined=room.joined.set,
                    url="ws://front",  # ``_dial`` knows the way
                    avatar=room.avatar,
                    sample_rate=self._config.sample_rate,
                    max_width=self._config.max_width or None,
                    dial=partial(self._dial, room.shown),
                )
            except (LipsyncError, ValueError) as error:
                self._counts.failed()
                log.warning("leaves a room", session=room.id, reason=str(error))
                raise
            finally:
                del self._rooms[room.id]
            log.info("leaves a room", session=room.id, reason=why)
            return why

    def _dial(self, shown: str, **wanted: Any) -> Connecting:
        own = f"Bearer {self._token}" if self._token else ""
        url, headers = self._fronts.way(shown or own)
        return connect(**(wanted | {"url": url, "token": "", "headers": headers}))


def _check_token(token: str) -> None:
    """See that a token can be one, and has not run out: whoever issued it checks the rest.

    Raises:
        PeerError: it cannot.
    """
    parts = token.split(".")
    try:
        if len(parts) != 3 or len(token) > MOST_TOKEN:
            raise ValueError
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        ends = claims.get("exp")
    except (ValueError, AttributeError, binascii.Error, RecursionError):
        raise PeerError("livekit_token: expected a token of LiveKit (a JWT)") from None
    if not isinstance(ends, (int, float)) or ends <= time.time():
        raise PeerError("livekit_token: it has run out; make a new one")
