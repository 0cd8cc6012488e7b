# SPDX-License-Identifier: Apache-2.0
"""The port of WebRTC's signalling: HTTP, with pages of the operator's beside it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aiohttp import web

from lipsync_fast.errors import FrontError, PeerError, SessionError
from lipsync_fast.gateway.adapters import Counts
from lipsync_fast.gateway.fronts import Fronts
from lipsync_fast.gateway.greeting import Greeting
from lipsync_fast.gateway.requests import KEPT_S, Handler, check_place, let_in, listen, refused
from lipsync_fast.gateway.visitors import Visitors
from lipsync_fast.gateway.webrtc.livetalking import LiveTalking
from lipsync_fast.gateway.webrtc.peers import Peers, words_of
from lipsync_fast.gateway.webrtc.whep import Whep
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.ipc.status import GatewayLoad
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.gateway")
HELLO = "WebRTC of lipsync-fast: offers are posted to /whep; see docs/integrations.md\n"
CHATTY = "aiohttp", "aioice", "aiortc"
"""Loggers of others: what strangers do to a port is no news."""


class WebRtcAdapter:
    """WebRTC; see ``adapters.Adapter``."""

    name = "webrtc"

    def __init__(
        self,
        spec: GatewaySpec,
        fronts: Fronts,
        load: GatewayLoad,
        greeting: Greeting | None = None,
        visitors: Visitors | None = None,
    ) -> None:
        self._spec, self._listen, self._greeting = spec, spec.config.listen, greeting
        self._counts = Counts(load, self.name)
        self._visitors = visitors or Visitors(spec)
        self._peers = Peers(spec.config, fronts, self._counts, self._visitors)
        self._runner: web.AppRunner | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            LipsyncError: a port cannot be had.
        """
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        most = self._spec.config.limits.message_bytes

        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._around(request, handler)

        app = web.Application(middlewares=[around], client_max_size=most)
        Whep(self._peers, most).add(app.router)
        LiveTalking(self._peers, self._counts, most).add(app.router)
        self._add_pages(app.router)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=KEPT_S,
            handler_cancellation=True,
            shutdown_timeout=1.0,
        )
        self._watch = asyncio.create_task(self._peers.watch())
        spec = self._spec
        await listen(self._runner, spec, spec.webrtc_ports, "WebRTC", self._greeting)

    async def drain(self, seconds: float) -> None:
        """Take nobody new; end those that are left after so many seconds."""
        await self._peers.drain(seconds)
        if self._watch is not None:
            self._watch.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    def _add_pages(self, router: web.UrlDispatcher) -> None:
        pages = self._spec.config.webrtc.pages

        async def root(request: web.Request) -> web.StreamResponse:
            index = Path(pages) / "index.html"
            if pages and index.is_file():
                return web.FileResponse(index)
            return web.Response(text=HELLO)

        router.add_get("/", root)
        if pages:
            router.add_static("/", pages)

    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse who may not ask, turn errors into answers, and complete their headers."""
        try:
            check_place(self._listen, request)
            answer = await handler(request)
        except web.HTTPException as error:
            words = f"{error.reason.lower()}\n" if error.status < 500 else ""
            answer = web.Response(status=error.status, text=words, headers=_of_method(error))
        except PeerError as error:
            answer = self._refused(error)
        except FrontError as error:
            answer = self._refused(self._of_front(error))
        except (SessionError, ValueError) as error:
            answer = self._refused(PeerError(words_of(error), 503))
        except ConnectionError:  # of the client, that has gone
            raise
        except Exception:
            log.exception("a request has failed", path=request.path)
            answer = web.Response(status=500, text="internal error\n")
        if not answer.prepared:
            let_in(self._listen, request, answer)
        return answer

    def _of_front(self, error: FrontError) -> PeerError:
        return PeerError(words_of(error), error.status or 503, error.reason, error.retry_s)

    def _refused(self, error: PeerError) -> web.Response:
        self._counts.refused()
        return refused(error)


def _of_method(error: web.HTTPException) -> dict[str, str]:
    allowed = error.headers.get("Allow")
    return {} if allowed is None else {"Allow": allowed}
