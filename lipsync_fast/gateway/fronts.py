# SPDX-License-Identifier: Apache-2.0
"""The way to the fronts: connections that act for a client; single requests over them, sessions.

Single requests are the old protocol's: each message gets one reply, in order, whatever happens to
engines meanwhile. A connection stays at one front. Where that front dies, what was asked and not
answered is lost, and whoever asks next has a new connection: its successor listens on the same
socket, so opening one waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from lipsync_fast.errors import FrontError, SessionError
from lipsync_fast.tokens.refusals import CODE, RETRY_S
from lipsync_fast_client.connecting import Connecting
from lipsync_fast_client.dialing import Dialer
from lipsync_fast_client.protocol import SessionStart
from lipsync_fast_client.session import Session

OPEN_S = 10.0
"""How long a connection may take to open; a front that has died is there again long before."""
ANSWER_S = 30.0
"""How long an answer may take: a front gives up on what it asks of engines after 10 s."""
KEPT_S, MOST_KEPT = 10.0, 64
"""How long a connection is kept for its client's next request, and how many are."""
MOST_BYTES = 64 << 20
UNASKED = '{"type":"stats"'
"""How what a front says unasked begins."""
_STATUSES = {"unauthorized": 401, "unknown_avatar": 404, "overloaded": 503, "internal": 503}
"""Of codes of errors with which a session is refused; what else there is, is the client's fault."""
Reply = str | bytes


@dataclass(frozen=True)
class Client:
    """For whom the gateway asks.

    Attributes:
        address: as the gateway has seen it.
        forwarded: what came with the request as X-Forwarded-For; counts where ``address`` is one of
            ``listen.proxies``.
        authorization: what the client shows.
        traceparent, tracestate: whose part of a trace its sessions are.
    """

    address: str
    forwarded: str = ""
    authorization: str = ""
    traceparent: str = ""
    tracestate: str = ""

    def headers(self) -> dict[str, str]:
        """What a front is told of it."""
        seen = ", ".join(part for part in (self.forwarded, self.address) if part)
        shown = {
            "Authorization": self.authorization,
            "traceparent": self.traceparent,
            "tracestate": self.tracestate,
        }
        return {"X-Forwarded-For": seen, **{name: text for name, text in shown.items() if text}}


MOST_HEADER = 4096
"""Bytes of a client's authorization, or of the addresses that it names."""


def passed_on(values: Sequence[str]) -> str:
    """Values of a client's header as one that can be passed on; nothing where they cannot."""
    text = ", ".join(values)
    return text if len(text) <= MOST_HEADER and text.isprintable() and text.isascii() else ""


class FrontLink:
    """One connection. Whoever asks while another one waits gets the later reply."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._why = ""
        self._task = asyncio.create_task(self._receive())

    @property
    def lost(self) -> bool:
        """Whether nothing more can be asked."""
        return bool(self._why)

    @property
    def waits(self) -> bool:
        """Whether something was asked that has not been answered."""
        return bool(self._waiting)

    async def ask(self, message: Reply) -> asyncio.Future[Reply]:
        """Ask; the answer comes later. Waits while the front does not read.

        Raises:
            FrontError: the connection is lost.
        """
        if self._why:
            raise FrontError(self._why)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_seen)
        self._waiting.append(future)
        try:
            await self._connection.send(message)
        except ConnectionClosed as error:
            self._lose(error)
        return future

    async def close(self) -> None:
        """Close at once: a front drops what it has not made yet."""
        self._connection.transport.abort()
        await asyncio.wait([self._task])

    async def _receive(self) -> None:
        try:
            while True:
                reply = await self._connection.recv()
                if isinstance(reply, str) and reply.startswith(UNASKED):
                    continue
                if not self._waiting:
                    break  # out of step: no reply could be believed
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except ConnectionClosed as error:
            self._lose(error)
        finally:
            self._lose(None)
            self._connection.transport.abort()

    def _lose(self, error: ConnectionClosed | None) -> None:
        close = error.rcvd if error is not None else None
        if not self._why:
            self._why = (close and close.reason) or "the server has lost what was asked; try again"
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(FrontError(self._why))


class Fronts:
    """All connections of a gateway to its server's fronts. One loop.

    Args:
        url: of the inner listener; secret: what it asks for.
    """

    def __init__(self, url: str, secret: str) -> None:
        self._url, self._secret = url, secret
        self._kept: dict[Client, list[tuple[FrontLink, asyncio.TimerHandle]]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.links = 0
        """Connections now."""

    async def open(self, client: Client | None) -> FrontLink:
        """A new connection that acts for a client; for the gateway itself where None.

        Raises:
            FrontError: no front takes it; ``status`` where one has refused it.
        """
        options: dict[str, Any] = {
            "additional_headers": self._headers(client),
            "compression": None,
            "open_timeout": OPEN_S,
            "close_timeout": 1.0,
            "max_size": MOST_BYTES,
            "proxy": None,
            "user_agent_header": None,
        }
        try:
            connection = await connect(self._url, **options)
        except InvalidStatus as error:
            words = bytes(error.response.body or b"").decode(errors="replace").strip()
            raise _refused(words, error) from None
        except (OSError, TimeoutError, WebSocketException, EOFError) as error:
            raise FrontError("the server does not answer; try again later") from error
        self.links += 1
        link = FrontLink(connection)
        link._task.add_done_callback(self._gone)
        return link

    @asynccontextmanager
    async def session(
        self, client: Client, start: SessionStart, patience_s: float
    ) -> AsyncIterator[Session]:
        """A session of lipsync.v1 that acts for a client; it comes back where a front has died.

        Args:
            patience_s: for how long it is tried.

        Raises:
            FrontError: no front takes it; ``status`` where one has refused it.
        """
        dialer = Dialer(self._url, "", OPEN_S, self._headers(client))
        connecting = Connecting(dialer, start, patience_s)
        try:
            session = await connecting.__aenter__()
        except SessionError as error:
            raise _as_front_error(error) from None
        self.links += 1
        try:
            yield session
        finally:
            self.links -= 1
            await connecting.__aexit__(None, None, None)

    def way(self, authorization: str) -> tuple[str, dict[str, str]]:
        """Where fronts are, and what the gateway shows there for a session of its own.

        Args:
            authorization: of the server's own, or of who has asked for it; may be empty.
        """
        shown = {"Authorization": authorization} if authorization else {}
        return self._url, self._headers(None) | shown

    def _headers(self, client: Client | None) -> dict[str, str]:
        headers = {"X-Lipsync-Fast-Gateway": self._secret}
        return headers if client is None else headers | client.headers()

    def _gone(self, task: asyncio.Task[None]) -> None:
        self.links -= 1

    @asynccontextmanager
    async def own(self, client: Client) -> AsyncIterator[OwnLink]:
        """A connection for one call alone, which is opened when it is needed, and again."""
        own = OwnLink(self, client)
        try:
            yield own
        finally:
            await own.close()

    async def ask(self, client: Client | None, message: Reply) -> Reply:
        """Ask something that may be asked twice: once more where a front has died.

        Raises:
            FrontError: there is no answer.
        """
        try:
            return await self._ask(client, message)
        except FrontError as error:
            if error.status:
                raise
        return await self._ask(client, message)

    async def _ask(self, client: Client | None, message: Reply) -> Reply:
        link = self._take(client) or await self.open(client)
        try:
            return await answer(await link.ask(message))
        finally:
            if link.lost or link.waits or client is None:
                await link.close()
            else:
                self._keep(client, link)

    # ------------------------------------------------------------ kept for the next request
    def _take(self, client: Client | None) -> FrontLink | None:
        kept = self._kept.get(client, []) if client is not None else []
        while kept:
            link, timer = kept.pop()
            timer.cancel()
            if not kept and client is not None:
                del self._kept[client]
            if not link.lost:
                return link
        return None

    def _keep(self, client: Client, link: FrontLink) -> None:
        if sum(map(len, self._kept.values())) >= MOST_KEPT:
            self._close(link)
            return
        timer = asyncio.get_running_loop().call_later(KEPT_S, self._forget, client, link)
        self._kept.setdefault(client, []).append((link, timer))

    def _forget(self, client: Client, link: FrontLink) -> None:
        kept = [pair for pair in self._kept.pop(client, []) if pair[0] is not link]
        if kept:
            self._kept[client] = kept
        self._close(link)

    def _close(self, link: FrontLink) -> None:
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all that is kept."""
        for kept in self._kept.values():
            for link, timer in kept:
                timer.cancel()
                self._close(link)
        self._kept.clear()
        if self._closing:
            await asyncio.wait(self._closing)


class OwnLink:
    """A connection of one call; what is asked when it was lost is asked over a new one."""

    def __init__(self, fronts: Fronts, client: Client) -> None:
        self._fronts, self._client = fronts, client
        self._link: FrontLink | None = None

    async def ask(self, message: Reply) -> asyncio.Future[Reply]:
        """Ask; what is wrong is in the answer: nothing is raised here."""
        try:
            if self._link is None or self._link.lost:
                await self.close()
                self._link = await self._fronts.open(self._client)
            return await self._link.ask(message)
        except FrontError as error:
            failed: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            failed.add_done_callback(_seen)
            failed.set_exception(error)
            return failed

    async def close(self) -> None:
        """Close at once."""
        if self._link is not None:
            await self._link.close()


async def answer(future: asyncio.Future[Reply]) -> Reply:
    """What was answered.

    Raises:
        FrontError: nothing, or not in time.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            return await future
    except TimeoutError:
        raise FrontError(f"the server has not answered within {ANSWER_S:g} s") from None


def _refused(words: str, error: InvalidStatus) -> FrontError:
    """That a front has not taken a connection."""
    status, headers = error.response.status_code, error.response.headers
    retry = headers.get("Retry-After", "")
    return FrontError(
        words or f"refused with HTTP status {status}",
        status,
        headers.get(CODE, ""),
        float(retry) if retry.isdigit() else RETRY_S,
    )


def _as_front_error(error: SessionError) -> FrontError:
    """Why a session was refused, with the HTTP status that says as much."""
    cause = error.__cause__
    if isinstance(cause, InvalidStatus):
        return _refused(str(error), cause)
    if error.code == "connection":
        return FrontError("the server does not answer; try again later")
    return FrontError(str(error), _STATUSES.get(error.code, 400))


def _seen(future: asyncio.Future[Reply]) -> None:
    """What nobody waits for any more is no defect."""
    if not future.cancelled():
        future.exception()
