# SPDX-License-Identifier: Apache-2.0
"""WHEP: an offer is posted, and answered at once; what came of it has an address of its own.

Beside it, what WHEP does not have: a recording or a text for the avatar to say (POST …/audio,
POST …/text), and silence (DELETE …/audio).
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from lipsync_fast.errors import PeerError
from lipsync_fast.gateway.requests import body, client_of, preflight
from lipsync_fast.gateway.webrtc import hearing, offers
from lipsync_fast.gateway.webrtc.peer import ASKED, Peer
from lipsync_fast.gateway.webrtc.peers import Peers
from lipsync_fast_client.protocol import MOST_TEXT

MOST_TEXT_BYTES = 4 * MOST_TEXT
SDP, FRAGMENT = "application/sdp", "application/trickle-ice-sdpfrag"


class Whep:
    """Its routes.

    Args:
        most_bytes: of a recording.
    """

    def __init__(self, peers: Peers, most_bytes: int) -> None:
        self._peers, self._most = peers, most_bytes

    def add(self, router: web.UrlDispatcher) -> None:
        """Have them answered."""
        router.add_post("/whep", self.offer)
        router.add_patch("/whep/{id}", self.trickle)
        router.add_delete("/whep/{id}", self.end)
        router.add_post("/whep/{id}/audio", self.say)
        router.add_delete("/whep/{id}/audio", self.interrupt)
        router.add_post("/whep/{id}/text", self.say_text)
        for path, methods in (
            ("/whep", "POST"),
            ("/whep/{id}", "DELETE, PATCH"),
            ("/whep/{id}/audio", "DELETE, POST"),
            ("/whep/{id}/text", "POST"),
        ):
            router.add_options(path, preflight(methods))

    async def offer(self, request: web.Request) -> web.Response:
        """An offer of SDP."""
        self._peers.who(client_of(request))
        if request.content_type not in (SDP, "application/octet-stream"):
            raise PeerError(f"send an offer as {SDP}", 415)
        try:
            sdp = (await body(request, offers.MOST_BYTES)).decode()
        except UnicodeDecodeError:
            raise PeerError("this is no offer in SDP") from None
        named = request.headers.get("X-Lipsync-Fast-Avatar", "")
        avatar = request.query.get("avatar", named)
        peer, answer = await self._peers.begin("whep", sdp, avatar, client_of(request))
        made = web.Response(status=201, text=answer, content_type=SDP)
        made.headers["Location"] = f"/whep/{peer.id}"
        for link in self._peers.places.links():
            made.headers.add("Link", link)
        return made

    async def trickle(self, request: web.Request) -> web.Response:
        """Candidates that were found since."""
        peer = self._peer(request)
        if request.content_type != FRAGMENT:
            raise PeerError(f"send candidates as {FRAGMENT}", 415)
        fragment = await body(request, offers.MOST_BYTES)
        await peer.trickle(fragment.decode(errors="replace"))
        return web.Response(status=204)

    async def end(self, request: web.Request) -> web.Response:
        """The end."""
        self._peer(request).close(ASKED)
        return web.Response(status=200)

    async def say(self, request: web.Request) -> web.Response:
        """A recording."""
        peer = self._peer(request)
        data = await body(request, self._most)
        peer.sayings.recording(await asyncio.to_thread(hearing.opened, data))
        return web.Response(status=202)

    async def say_text(self, request: web.Request) -> web.Response:
        """A text to say: in plain UTF-8."""
        peer = self._peer(request)
        try:
            text = (await body(request, MOST_TEXT_BYTES)).decode()
        except UnicodeDecodeError:
            raise PeerError("this is no text in UTF-8") from None
        peer.sayings.text(text.strip(), request.query.get("voice", ""))
        return web.Response(status=202)

    async def interrupt(self, request: web.Request) -> web.Response:
        """Silence."""
        await self._peer(request).interrupt()
        return web.Response(status=204)

    def _peer(self, request: web.Request) -> Peer:
        return self._peers.find(request.match_info["id"], client_of(request))
