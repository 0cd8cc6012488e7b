# SPDX-License-Identifier: Apache-2.0
"""What stands before all routes: who may ask, and the headers that every answer has.

The page, its modules, /health and the description are open to all who know the server by a name
of its own. For the rest the token must be shown where one is configured. A foreign page may open
/ws only where its origin is allowed; answers to plain requests it cannot read, since no header
lets it. Who may load and unload avatars is another question (``Entrance.admit_change``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from wsproto.events import CloseConnection, Ping, Pong
from wsproto.events import Message as Piece

from lipsync_fast.frontend.access.entrance import NOT_ITS_NAME
from lipsync_fast.frontend.access.places import RESERVED
from lipsync_fast.frontend.http.http1 import TURN
from lipsync_fast.frontend.services import Services
from lipsync_fast.logs import get_logger
from lipsync_fast.origins import client_address, host_allowed, origin_allowed
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import ANYONE, Subject
from lipsync_fast.turns import CHATTER, WHY, Turn

log = get_logger("lipsync.front")
HEALTH = ("/health", "/health/live", "/health/ready")
OPEN = ("/", *HEALTH, "/openapi.json", "/favicon.ico")
ASSETS = "/assets/"
SUBJECT = "lipsync_fast.subject"
"""Key of a request's scope: whose it is."""
CHANGED, CHANGES = "/v1/avatars/", ("POST", "DELETE")
"""Requests that change what is served: see ``admin``."""
ASKED_WITH = "Authorization, Content-Type, If-None-Match, If-Range, Range"
"""Headers that a page of an allowed origin may send."""
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self';"
        " img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}


ALWAYS = (*HEALTH, "/metrics")
"""Are answered on connections in reserve, too; nothing else is."""


def is_open(path: str) -> bool:
    """Whether a path needs no token."""
    return path in OPEN or path.startswith(ASSETS)


def refused(refusal: Refusal) -> Response:
    """The answer to who may not."""
    return PlainTextResponse(refusal.message + "\n", refusal.status, refusal.headers)


FULL = Refusal(503, "connection", "as many are connected as this server takes; try again later")


class Guard:
    """Refuses who may not ask; else passes on, and completes the answer's headers."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or upgrade."""
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            _without_compression(send)
            _ends_in_words(scope, send, self._count_chatter)

        reserved = bool(scope.get("state", {}).get(RESERVED))

        async def send_complete(message: Message) -> None:
            if message["type"].endswith("response.start"):
                answer = MutableHeaders(scope=message)
                self._complete(headers, answer, scope.get("method") == "OPTIONS")
                if reserved:
                    answer["Connection"] = "close"
            await send(message)

        full = reserved and scope["path"] not in ALWAYS
        found = FULL if full else self._admitted(scope, headers)
        if isinstance(found, Refusal):
            self._services.note_refused(found, self._address(scope, headers))
            await refused(found)(scope, receive, send_complete)
            return
        scope[SUBJECT] = found
        try:
            await self._app(scope, receive, send_complete)
        except Exception:  # answered with 500 already, where that was possible
            log.exception("a request has failed", path=scope["path"])

    def _count_chatter(self) -> None:
        self._services.statistics.count_error("chatter")

    def _admitted(self, scope: Scope, headers: Headers) -> Subject | Refusal:
        """Whose request it is, or why it may not go on."""
        listen, path = self._services.config.listen, scope["path"]
        plain, entrance = scope["type"] == "http", self._services.entrance
        if plain and is_open(path):
            return ANYONE if host_allowed(listen, headers.get("Host")) else NOT_ITS_NAME
        query = "/?" + scope["query_string"].decode("latin-1")
        peer, address = _peer(scope), self._address(scope, headers)
        if plain and path.startswith(CHANGED) and scope["method"] in CHANGES:
            return entrance.admit_change(headers.get, query, address, peer)
        origin_counts = not plain or scope["method"] not in ("GET", "HEAD")

        def header(name: str) -> str | None:
            if name == "Origin" and not origin_counts:
                return None
            return headers.get(name)

        found = entrance.admit(header, query, address, upgrade=not plain)
        if plain and scope["method"] == "OPTIONS" and isinstance(found, Refusal):
            # What can be done is no secret, and a browser that asks first shows no token.
            return found if found.status == 403 else ANYONE
        return found

    def _address(self, scope: Scope, headers: Headers) -> str:
        """The client's address."""
        forwarded = ",".join(headers.getlist("X-Forwarded-For")) or None
        return client_address(self._services.config.listen, _peer(scope), forwarded)

    def _complete(self, asked: Headers, answer: MutableHeaders, asks: bool) -> None:
        for name, value in SECURITY.items():
            answer[name] = value
        origin = asked.get("Origin")
        if origin is None:
            return
        answer.add_vary_header("Origin")
        if origin_allowed(self._services.config.listen, origin, asked.get("Host")):
            answer["Access-Control-Allow-Origin"] = origin
            if asks and "Allow" in answer:
                answer["Access-Control-Allow-Methods"] = answer["Allow"]
                answer["Access-Control-Allow-Headers"] = ASKED_WITH
                answer["Access-Control-Max-Age"] = "600"


def _peer(scope: Scope) -> str:
    """The address at the other end of the connection."""
    return str((scope.get("client") or [""])[0])


def _without_compression(send: Send) -> None:
    """Keep Hypercorn from agreeing to compress messages: JPEGs would only cost time.

    It has no setting for it; what it will answer hangs on the WebSocket whose method ``send`` is.
    A test watches that this holds.
    """
    handshake = getattr(getattr(send, "__self__", None), "handshake", None)
    if handshake is not None:
        handshake.extensions = None


def _ends_in_words(scope: Scope, send: Send, on_chatter: Callable[[], None]) -> None:
    """Have a client that is sent away told so in a close frame, as the stream port does.

    One that breaks the protocol, or sends pings, pongs and empty frames without end (``turns``).
    Hypercorn answers close frames alone, and leaves without a word otherwise; so where it is told
    of either, that counts as one. See ``_without_compression``.
    """
    handshake = getattr(getattr(send, "__self__", None), "handshake", None)
    if handshake is None:
        return
    turn: Turn = scope["state"][TURN]
    accept = handshake.accept

    def accepted(*args: Any) -> Any:
        answer = accept(*args)
        connection = answer[2]
        received = connection.events

        def events() -> Iterator[Any]:
            for event in received():
                states = type(connection.state)
                if connection.state is not states.OPEN:
                    yield event
                    continue
                if turn.count(_says_nothing(event)):
                    on_chatter()
                    event = CloseConnection(CHATTER, WHY)
                if isinstance(event, CloseConnection):
                    connection._state = states.REMOTE_CLOSING
                    yield event
                    return
                yield event

        connection.events = events
        return answer

    handshake.accept = accepted


def _says_nothing(event: Any) -> bool:
    if isinstance(event, Piece):
        return bool(event.frame_finished) and not event.data
    return isinstance(event, Ping | Pong)
