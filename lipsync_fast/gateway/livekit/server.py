# SPDX-License-Identifier: Apache-2.0
"""The port where agents of LiveKit ask for avatars: HTTP, for whoever shows the admin token."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import msgspec
from aiohttp import web

from lipsync_fast.errors import AvatarNotFoundError, PeerError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.fronts import Fronts
from lipsync_fast.gateway.greeting import Greeting
from lipsync_fast.gateway.livekit.rooms import Join, Rooms
from lipsync_fast.gateway.requests import KEPT_S, Handler, body, client_of, form, listen, refused
from lipsync_fast.gateway.visitors import Visitors
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.ipc.status import GatewayLoad
from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.subject import Subject

log = get_logger("lipsync.gateway")
ROUTE = "/v1/livekit/sessions"
WHO = web.RequestKey("who", Subject)
MOST_BYTES = 65_536
CHATTY = "aiohttp", "livekit", "livekit.agents"
"""Loggers of others, which say what is said here in our own words."""


class Asked(msgspec.Struct, frozen=True):
    """What an agent asks for. Other fields are ignored, as other services have them.

    Attributes:
        avatar_id: the avatar, in the words of another service.
    """

    livekit_url: str
    livekit_token: str
    room_name: str = ""
    avatar: str = ""
    avatar_id: str = ""


class LiveKitAdapter:
    """LiveKit; see ``adapters.Adapter``.

    Args:
        join: see ``rooms.Join``; the plug-in's where None.
    """

    name = "livekit"

    def __init__(
        self,
        spec: GatewaySpec,
        fronts: Fronts,
        load: GatewayLoad,
        greeting: Greeting | None = None,
        visitors: Visitors | None = None,
        join: Join | None = None,
    ) -> None:
        self._greeting = greeting
        self._spec, self._visitors = spec, visitors or Visitors(spec)
        self._counts = Counts(load, self.name)
        take = import_module("livekit.plugins.lipsync_fast").join if join is None else join
        self._rooms = Rooms(
            spec.config.livekit, fronts, spec.config.listen.token, self._counts, take
        )
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            LipsyncError: a port cannot be had.
        """
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.CRITICAL)

        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._around(request, handler)

        app = web.Application(middlewares=[around], client_max_size=MOST_BYTES)
        app.router.add_post(ROUTE, self._begin)
        app.router.add_get(ROUTE, self._list)
        app.router.add_delete(ROUTE + "/{id}", self._end)
        spec = self._spec
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=KEPT_S, shutdown_timeout=1.0
        )
        await listen(self._runner, spec, spec.livekit_ports, "LiveKit", self._greeting)

    async def drain(self, seconds: float) -> None:
        """Take nobody new; have those leave that are left after so many seconds."""
        await self._rooms.drain(seconds)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _begin(self, request: web.Request) -> web.Response:
        asked = await _asked(request)
        who, default = _who(request), self._spec.config.avatars.default
        try:
            avatar = asked.avatar or asked.avatar_id
            avatar = avatar if who.may_use(avatar or default) else who.avatar(avatar, default)
        except AvatarNotFoundError as error:
            raise PeerError(str(error), 404, error.code) from None
        room = await self._rooms.begin(
            asked.livekit_url, asked.livekit_token, asked.room_name, avatar, who, _shown(request)
        )
        client, where = client_of(request), room.where
        self._visitors.note("room", client, who, session=room.id, avatar=avatar, livekit=where)
        place = {"Location": f"{ROUTE}/{room.id}"}
        return web.json_response(room.described(), status=201, headers=place)

    async def _list(self, request: web.Request) -> web.Response:
        rooms = self._rooms.of(_who(request))
        return web.json_response({"sessions": [room.described() for room in rooms]})

    async def _end(self, request: web.Request) -> web.Response:
        if not await self._rooms.end(request.match_info["id"], _who(request)):
            raise PeerError("there is no such session", 404)
        return web.Response(status=204)

    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse who may not ask, and turn errors into answers."""
        try:
            self._check(request)
            return await handler(request)
        except web.HTTPException as error:
            words = f"{error.reason.lower()}\n" if error.status < 500 else ""
            return web.Response(status=error.status, text=words)
        except PeerError as error:
            self._counts.refused()
            return refused(error)
        except ConnectionError:  # of the client, that has gone
            raise
        except Exception:
            log.exception("a request has failed", path=request.path)
            return web.Response(status=500, text="internal error\n")

    def _check(self, request: web.Request) -> None:
        """See that it is the operator's own agents who ask.

        Raises:
            PeerError: it is not.
        """
        if request.headers.get("Origin") is not None:
            raise PeerError("this is not for pages", 403)
        request[WHO] = self._visitors.admin(client_of(request))


def _who(request: web.Request) -> Subject:
    return request[WHO]


def _shown(request: web.Request) -> str:
    """What a front is shown for a session: the token of who asks, where it names somebody."""
    return client_of(request).authorization if _who(request).name else ""


async def _asked(request: web.Request) -> Asked:
    """What a request asks for: JSON, or a form.

    Raises:
        PeerError: nothing that can be.
    """
    try:
        if request.content_type == "multipart/form-data":
            fields: Any = {
                name: value.decode() for name, value in (await form(request, MOST_BYTES)).items()
            }
        else:
            fields = msgspec.json.decode(await body(request, MOST_BYTES))
        return msgspec.convert(fields, Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        words = "expected JSON or a form with livekit_url and livekit_token"
        raise PeerError(f"{words} ({error})") from None
