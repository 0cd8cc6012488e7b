# SPDX-License-Identifier: Apache-2.0
"""The routes that LiveTalking's web pages and their programs ask.

All answers are ``{"code", "msg", "data"?}`` with the HTTP status 200; code 0 is well, -1 is not.
What there is not, such as answers of its own, is said in ``msg``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from lipsync_fast.errors import LipsyncError, PeerError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.requests import body, client_of, form, preflight
from lipsync_fast.gateway.webrtc import hearing, offers
from lipsync_fast.gateway.webrtc.peer import Peer
from lipsync_fast.gateway.webrtc.peers import Peers, words_of

MOST_JSON = 2 * offers.MOST_BYTES
NO_CHAT = "nobody thinks of an answer here: send what is to be said, as type echo"
NO_TYPES = "this avatar has no other motions to choose from"
M = TypeVar("M", bound=msgspec.Struct)


class OfferAsked(msgspec.Struct):
    """Of /offer."""

    sdp: str
    type: str = "offer"
    avatar: str = ""


class Asked(msgspec.Struct):
    """Of all others; those that name numbers as well are understood."""

    sessionid: str | int = ""


class TextAsked(Asked):
    """Of /human."""

    text: str = ""
    type: str = "echo"
    interrupt: bool = False


class RecordAsked(Asked):
    """Of /record."""

    type: str = ""


class LiveTalking:
    """Its routes.

    Args:
        most_bytes: of a recording.
    """

    def __init__(self, peers: Peers, counts: Counts, most_bytes: int) -> None:
        self._peers, self._counts, self._most = peers, counts, most_bytes

    def add(self, router: web.UrlDispatcher) -> None:
        """Have them answered."""
        router.add_post("/offer", self._answered(self.offer, "", flat=True))
        router.add_options("/offer", preflight("POST"))
        for name, handler in (
            ("humanaudio", self.say),
            ("interrupt_talk", self.interrupt),
            ("is_speaking", self.is_speaking),
            ("human", self.say_text),
            ("set_audiotype", self._without(NO_TYPES)),
            ("record", self.record),
        ):
            router.add_post(f"/{name}", self._answered(handler, name))
            router.add_options(f"/{name}", preflight("POST"))
        router.add_get("/record/{id}", self.recorded)

    async def offer(self, request: web.Request) -> dict[str, Any]:
        """An offer."""
        asked = await self._asked(request, OfferAsked)
        if asked.type != "offer":
            raise PeerError("type: expected offer")
        client = client_of(request)
        peer, answer = await self._peers.begin("offer", asked.sdp, asked.avatar, client)
        return {"sdp": answer, "type": "answer", "sessionid": peer.id}

    async def say(self, request: web.Request) -> None:
        """A recording, as a form."""
        fields = await form(request, self._most)
        peer = self._find(request, fields.get("sessionid", b"").decode(errors="replace"))
        if "file" not in fields:
            raise PeerError("there is no field named file")
        peer.sayings.recording(await asyncio.to_thread(hearing.opened, fields["file"]))

    async def say_text(self, request: web.Request) -> None:
        """A text to say."""
        asked = await self._asked(request, TextAsked)
        peer = self._find(request, str(asked.sessionid))
        if asked.type != "echo":
            raise PeerError(NO_CHAT)
        if asked.interrupt:
            await peer.interrupt()
        peer.sayings.text(asked.text)

    async def interrupt(self, request: web.Request) -> None:
        """Silence."""
        await (await self._peer(request)).interrupt()

    async def is_speaking(self, request: web.Request) -> bool:
        """Whether something is being said, or waits to be."""
        return (await self._peer(request)).speaking

    async def record(self, request: web.Request) -> None:
        """The beginning of a recording, or its end."""
        asked = await self._asked(request, RecordAsked)
        peer = self._find(request, str(asked.sessionid))
        if asked.type == "start_record":
            peer.record()
        elif asked.type == "end_record":
            peer.end_recording()
        else:
            raise PeerError("type: expected start_record or end_record")

    async def recorded(self, request: web.Request) -> web.StreamResponse:
        """What was recorded: the file itself."""
        self._counts.begun("recorded")
        try:
            file = self._find(request, request.match_info["id"]).recorded()
        except PeerError as error:
            self._counts.refused()
            reason = {"reason": error.reason} if error.reason else {}
            return _json({"code": -1, "msg": str(error), **reason})
        return web.Response(body=file, content_type="video/mp4")

    def _without(self, why: str) -> Callable[[web.Request], Awaitable[None]]:
        async def handler(request: web.Request) -> None:
            await self._peer(request)
            raise PeerError(why)

        return handler

    async def _peer(self, request: web.Request) -> Peer:
        return self._find(request, str((await self._asked(request, Asked)).sessionid))

    def _find(self, request: web.Request, id: str) -> Peer:
        return self._peers.find(id, client_of(request))

    async def _asked(self, request: web.Request, kind: type[M]) -> M:
        try:
            return msgspec.json.decode(await body(request, MOST_JSON), type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise PeerError(f"the request cannot be read: {' '.join(str(error).split())}") from None

    def _answered(
        self, handler: Callable[[web.Request], Awaitable[Any]], name: str, flat: bool = False
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """A handler whose result, or error, is an answer.

        Args:
            name: it is counted as; nothing where it counts by itself.
            flat: the result is all of the answer.
        """

        async def answer(request: web.Request) -> web.Response:
            if name:
                self._counts.begun(name)
            try:
                self._peers.who(client_of(request))
                result = await handler(request)
            except (LipsyncError, ValueError) as error:
                self._counts.refused()
                reason = getattr(error, "reason", "")
                told = {"code": -1, "msg": words_of(error)} | ({"reason": reason} if reason else {})
                return _json(told)
            if flat:
                return _json(result)
            return _json({"code": 0, "msg": "ok"} | ({} if result is None else {"data": result}))

        return answer


def _json(made: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(made), content_type="application/json")
