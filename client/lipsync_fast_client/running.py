# SPDX-License-Identifier: Apache-2.0
"""What differs between trio and asyncio: who opens a connection, waits, and closes in time."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

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
        raise RuntimeError("connect needs a running trio or asyncio loop") from None
    return "asyncio"


class Opener:
    """Opens connections one after the other; under trio, its nursery holds their tasks.

    So a connection may be opened anywhere within, not only where the first one was.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._nursery: Any = None

    async def __aenter__(self) -> Opener:
        if self._library == "trio":
            import trio

            self._manager = trio.open_nursery()
            self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait until the tasks of closed connections have ended."""
        if self._library != "trio":
            return
        try:
            # What was raised inside is the caller's, and no business of this nursery.
            await self._manager.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def open(self, url: str, **options: Any) -> Any:
        """A new connection of websockets."""
        if self._library == "trio":
            from websockets.trio.client import connect as connect_trio

            from lipsync_fast_client.duplex import DuplexClientConnection

            opening = connect_trio(url, create_connection=DuplexClientConnection, **options)
            return await opening.connect(self._nursery)
        from websockets.asyncio.client import connect as connect_asyncio

        return await connect_asyncio(url, **options)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def pause(library: Library, seconds: float) -> None:
    """Do nothing for so long."""
    if library == "trio":
        import trio

        await trio.sleep(seconds)
    else:
        import asyncio

        await asyncio.sleep(seconds)


async def within(library: Library, seconds: float, task: Callable[[], Awaitable[None]]) -> None:
    """Do something in time.

    Raises:
        TimeoutError: it took longer, and was cancelled.
    """
    if library == "trio":
        import trio

        with trio.move_on_after(seconds) as scope:
            await task()
        if scope.cancelled_caught:
            raise TimeoutError
        return
    import asyncio

    async with asyncio.timeout(seconds):
        await task()


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
            await abandon(library, connection)
        return
    import asyncio

    try:
        async with asyncio.timeout(seconds):
            await farewell()
            await connection.close()
    except TimeoutError:
        await abandon(library, connection)


async def abandon(library: Library, connection: Any) -> None:
    """Close without a word."""
    if library == "trio":
        await connection.abandon()
    else:
        connection.transport.abort()
