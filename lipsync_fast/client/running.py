# SPDX-License-Identifier: Apache-2.0
"""What differs between trio and asyncio: who opens a connection, and how closing is protected."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from lipsync_fast.canonical import is_loopback

Library = Literal["trio", "asyncio"]


class Connection(Protocol):
    """What both of websockets' connections can do."""

    async def send(self, message: str | bytes) -> None:
        """Send a message; returns when the transport has taken it."""
        ...

    async def recv(self) -> str | bytes:
        """The next message; cancelling it loses none."""
        ...


def running_library() -> Library:
    """The library whose event loop runs this task.

    Raises:
        RuntimeError: none does.
    """
    trio = sys.modules.get("trio")  # what is not imported does not run
    if trio is not None and trio.lowlevel.in_trio_task():
        return "trio"
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("lipsync_fast.connect needs a running trio or asyncio loop") from None
    return "asyncio"


def opened(library: Library, url: str, **options: Any) -> AbstractAsyncContextManager[Any]:
    """A WebSocket client connection of that library, to be entered.

    Proxies of the environment (HTTP_PROXY and the like) are for what is elsewhere: none of them
    leads to this machine itself.
    """
    if is_loopback(urlsplit(url).hostname or ""):
        options["proxy"] = None
    if library == "trio":
        from websockets.trio.client import connect as connect_trio

        from lipsync_fast.duplex import DuplexClientConnection

        return connect_trio(url, create_connection=DuplexClientConnection, **options)
    from websockets.asyncio.client import connect as connect_asyncio

    return connect_asyncio(url, **options)


async def close_within(
    library: Library, connection: Any, farewell: Callable[[], Awaitable[None]], seconds: float
) -> None:
    """Send a farewell and close, within so many seconds, also when what was inside is cancelled."""
    if library == "trio":
        import trio

        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
            await farewell()
            await connection.aclose()
        if scope.cancelled_caught:  # a server that does not read is left without its answer
            await trio.aclose_forcefully(connection.stream)
        return
    import asyncio

    try:
        async with asyncio.timeout(seconds):
            await farewell()
            await connection.close()
    except TimeoutError:
        connection.transport.abort()
