# SPDX-License-Identifier: Apache-2.0
"""The routes of the HTTP port. ``openapi.py`` describes them for others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from lipsync_fast.config import Listen
from lipsync_fast.errors import AvatarError, AvatarNotFoundError, LipsyncError
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.avatars.directory import without_folders
from lipsync_fast.frontend.http.answers import Problem, Ticket, as_json, problem
from lipsync_fast.frontend.http.avatars import all_facts, change_avatar, facts_of
from lipsync_fast.frontend.http.connection import CLOSE_S
from lipsync_fast.frontend.http.content import Content, answer, etag_of
from lipsync_fast.frontend.http.guard import SUBJECT, Guard, refused
from lipsync_fast.frontend.http.health import UNREADY, Live, health_of, readiness_of
from lipsync_fast.frontend.http.metrics import metrics_text
from lipsync_fast.frontend.http.openapi import document
from lipsync_fast.frontend.http.websocket import HttpSocket
from lipsync_fast.frontend.services import Services
from lipsync_fast.origins import client_address
from lipsync_fast.tokens.refusals import RETRY_S, Refusal, retry_after
from lipsync_fast.tokens.subject import Subject
from lipsync_fast.tokens.tickets import LIFE_S
from lipsync_fast_client.protocol import SUBPROTOCOL

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
FULL = Refusal(503, "connection", "the server is full or going away; try again later")
ALL_AVATARS = Refusal(403, "forbidden", "this names all avatars, and the token allows some alone")
PACKAGE = Path(__file__).resolve().parents[2]
Handler = Callable[[Request], Awaitable[Response]]
OnSocket = Callable[[Socket], Awaitable[None]]
Video = Callable[[str, Subject], Awaitable[memoryview]]


# ---------------------------------------------------------------- answers
@cache
def page_files() -> dict[str, Content]:
    """The page and its modules, by name."""
    found = {}
    for path in (PACKAGE / "frontend" / "page").iterdir():
        kind = TYPES.get(path.suffix)
        if kind is not None:
            data = path.read_bytes()
            found[path.name] = Content(data, kind, etag_of(data))
    return found


@cache
def sample() -> Content | None:
    """The recording that comes with the package; None where it did not come."""
    path = PACKAGE / "data" / "demo" / "speech.wav"
    if not path.is_file():
        return None
    data = path.read_bytes()
    return Content(data, "audio/wav", etag_of(data))


# ---------------------------------------------------------------- routes
class Routes:
    """The handlers, with what they need."""

    def __init__(self, services: Services, on_socket: OnSocket, video: Video) -> None:
        self._services, self._on_socket, self._video = services, on_socket, video

    async def page(self, request: Request) -> Response:
        """The page."""
        return answer(request, page_files()["index.html"])

    async def asset(self, request: Request) -> Response:
        """A module, style or picture of the page."""
        found = page_files().get(request.path_params["name"])
        return problem(404, "no such file") if found is None else answer(request, found)

    async def icon(self, request: Request) -> Response:
        """For browsers that ask for it by this name."""
        return answer(request, page_files()["icon.svg"])

    async def health(self, request: Request) -> Response:
        """Whether there is an engine that works."""
        health = health_of(self._services)
        return as_json(health, 200 if health.healthy else 503)

    async def live(self, request: Request) -> Response:
        """That this front answers."""
        return as_json(Live(True))

    async def ready(self, request: Request) -> Response:
        """Whether new sessions may come."""
        status = UNREADY.get(request.query_params.get("unready", ""))
        if status is None:
            return problem(400, "unready: expected 200, 404 or 503")
        readiness = readiness_of(self._services)
        if readiness.ready:
            return as_json(readiness)
        return as_json(readiness, status, X_Envoy_Degraded="true")

    async def stats(self, request: Request) -> Response:
        """All that the supervisor knows; a second old at most."""
        if _of(request).allowed.avatars is not None:
            return refused(ALL_AVATARS)
        status = self._services.statistics.server
        if status is None:
            young = Problem("the server has only just started; ask again in a moment")
            return as_json(young, 503, Retry_After=retry_after(RETRY_S))
        return as_json(status)

    async def metrics(self, request: Request) -> Response:
        """The same as numbers for Prometheus."""
        if _of(request).allowed.avatars is not None:
            return refused(ALL_AVATARS)
        accept = ",".join(request.headers.getlist("Accept"))
        text, kind = metrics_text(self._services.statistics.server, accept)
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "Vary": "Accept"}
        return Response(text, headers=headers)

    async def openapi(self, request: Request) -> Response:
        """The description of these routes."""
        return JSONResponse(document(), headers={"Cache-Control": "no-cache"})

    async def avatars(self, request: Request) -> Response:
        """All avatars that can be used."""
        return as_json(await trio.to_thread.run_sync(all_facts, self._services, _of(request)))

    async def avatar(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        try:
            subject = _of(request)
            return as_json(await trio.to_thread.run_sync(facts_of, self._services, name, subject))
        except AvatarError as error:
            return problem(404, error)

    async def change_avatar(self, request: Request) -> Response:
        """Load, replace (POST) or unload (DELETE) an avatar, for the whole server."""
        answer = await change_avatar(self._services, request, _of(request))
        self._note("avatar", request, method=request.method, status=answer.status_code)
        return answer

    def _note(self, event: str, request: Request, **more: Any) -> None:
        """Write down who has asked for that."""
        subject, listen = _of(request), self._services.config.listen
        self._services.audit.write(
            event,
            subject=subject.name,
            by=subject.by,
            key=subject.key,
            address=_address_of(request, listen),
            avatar=request.path_params.get("name"),
            **more,
        )

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of an avatar."""
        try:
            package = self._services.avatars.peek(request.path_params["name"], _of(request))
            data = package.member_bytes("thumbnail.jpg")
        except AvatarError as error:
            return problem(404, AvatarError(without_folders(str(error))))
        return answer(request, Content(data, "image/jpeg", etag_of(data)))

    async def video(self, request: Request) -> Response:
        """An avatar's frames; made when it is first asked for."""
        try:
            data = await self._video(request.path_params["name"], _of(request))
        except AvatarNotFoundError as error:
            return problem(404, error)
        except LipsyncError as error:
            return problem(500, error)
        etag = await trio.to_thread.run_sync(etag_of, data)
        return answer(request, Content(data, "video/mp4", etag))

    async def sample(self, request: Request) -> Response:
        """A recording to try an avatar with."""
        found = sample()
        if found is None:
            return problem(404, "this installation came without its recording")
        return answer(request, found)

    async def ticket(self, request: Request) -> Response:
        """A ticket for whoever asks: good for one WebSocket, soon."""
        try:
            ticket = self._services.tickets.issue(_of(request))
        except LipsyncError as error:
            return problem(400, error)
        self._note("ticket", request)
        return as_json(Ticket(ticket, LIFE_S), 201)

    async def no_websocket(self, request: Request) -> Response:
        """For who asks for /ws without an upgrade."""
        body = Problem("this path is for WebSocket: ask for an upgrade")
        return as_json(body, 426, Upgrade="websocket", Connection="Upgrade")

    async def websocket(self, websocket: WebSocket) -> None:
        """The stream protocols; the same as on the stream ports."""
        subject: Subject = websocket.scope[SUBJECT]
        peer = _address_of(websocket, self._services.config.listen)
        admission = self._services.admission
        full = FULL if admission.retry_s is not None else None
        full = full or self._services.accounts.session_refusal(subject, peer)
        if full is not None:
            self._services.note_refused(full, peer, subject)
            await websocket.send_denial_response(refused(full))
            return
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None
        await websocket.accept(subprotocol)
        socket = HttpSocket(websocket, subprotocol, peer, subject)
        await self._on_socket(socket)
        with trio.move_on_after(CLOSE_S):
            await socket.drain()


def _address_of(request: HTTPConnection, listen: Listen) -> str:
    """The client's address."""
    client = request.client
    forwarded = ",".join(request.headers.getlist("X-Forwarded-For")) or None
    return client_address(listen, client.host if client is not None else "", forwarded)


def _of(request: Request) -> Subject:
    """Whose request it is."""
    subject: Subject = request.scope[SUBJECT]
    return subject


def _route(path: str, get: Handler | None, **others: Handler) -> Route:
    """What can be done at a path: GET and HEAD, what is named (POST=…), and OPTIONS, to list it.

    One route for all methods: Starlette's 405 names those of the first route alone.
    """
    handlers = others if get is None else {"GET": get, "HEAD": get, **others}
    allowed = ", ".join(sorted([*handlers, "OPTIONS"]))

    async def answered(request: Request) -> Response:
        handler = handlers.get(request.method)
        if handler is not None:
            return await handler(request)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        wrong = Problem(f"{request.method} is not allowed here; allowed are {allowed}")
        return as_json(wrong, 405, Allow=allowed)

    route = Route(path, answered)
    route.methods = None  # all of them come to ``answered``
    return route


def routes(services: Services, on_socket: OnSocket, video: Video) -> list[Route | WebSocketRoute]:
    """All routes."""
    r = Routes(services, on_socket, video)
    return [
        _route("/", r.page),
        _route("/assets/{name}", r.asset),
        _route("/favicon.ico", r.icon),
        _route("/health", r.health),
        _route("/health/live", r.live),
        _route("/health/ready", r.ready),
        _route("/stats", r.stats),
        _route("/metrics", r.metrics),
        _route("/openapi.json", r.openapi),
        _route("/v1/avatars", r.avatars),
        _route("/v1/avatars/{name}", r.avatar, POST=r.change_avatar, DELETE=r.change_avatar),
        _route("/v1/avatars/{name}/thumbnail.jpg", r.thumbnail),
        _route("/v1/tickets", None, POST=r.ticket),
        _route("/v1/sample.wav", r.sample),
        _route("/models/{name}/video.mp4", r.video),
        _route("/ws", r.no_websocket),
        WebSocketRoute("/ws", r.websocket),
    ]


async def _websocket_elsewhere(websocket: WebSocket) -> None:
    """For who looks for the stream at another path."""
    words = "WebSocket is at /ws of this port, and at any path of the stream ports\n"
    await websocket.send_denial_response(PlainTextResponse(words, 404))


async def _not_here(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return problem(status, "there is nothing here; openapi.json describes what there is")


def create_app(services: Services, on_socket: OnSocket, video: Video) -> ASGIApp:
    """The application.

    Args:
        services: the front's.
        on_socket: speaks with a client of /ws until it goes.
        video: the MP4 of an avatar's frames, by the name in a request.
    """
    found = [
        *routes(services, on_socket, video),
        WebSocketRoute("/{path:path}", _websocket_elsewhere),
    ]
    return Guard(Starlette(routes=found, exception_handlers={404: _not_here}), services)
