# SPDX-License-Identifier: Apache-2.0
"""Messages that are sent without waiting: nothing is torn, lost, or overtaken."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from websockets.trio.client import connect
from websockets.trio.server import serve

from lipsync_fast.duplex import DuplexClientConnection, DuplexServerConnection
from lipsync_fast.errors import SocketClosedError
from lipsync_fast.frontend.listen.stream import StreamSocket
from lipsync_fast.frontend.session.outbox import Item, Outbox

Handle = Callable[[DuplexServerConnection], Awaitable[None]]
Talk = Callable[[DuplexClientConnection], Awaitable[None]]


def run(handle: Handle, talk: Talk) -> None:
    """A server's connection and a client's, over a real socket."""

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:

                async def start(task_status: trio.TaskStatus[object]) -> None:
                    await serve(
                        handle,  # type: ignore[arg-type]
                        port=0,
                        host="127.0.0.1",
                        compression=None,
                        create_connection=DuplexServerConnection,
                        task_status=task_status,  # type: ignore[arg-type]
                    )

                server = await nursery.start(start)
                port = server.listeners[0].socket.getsockname()[1]
                async with connect(
                    f"ws://127.0.0.1:{port}/",
                    compression=None,
                    max_size=None,
                    create_connection=DuplexClientConnection,
                ) as client:
                    await talk(client)  # type: ignore[arg-type]
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.clock
def test_what_the_kernel_does_not_take_at_once_follows_in_order() -> None:
    rng = random.Random(1)
    messages = [
        f"note {k}" if k % 5 == 4 else rng.randbytes(rng.choice((10, 70_000, 900_000)))
        for k in range(60)
    ]
    at_once, done = [0], trio.Event()

    async def handle(connection: DuplexServerConnection) -> None:
        socket = StreamSocket(connection, 0)
        box = Outbox(socket, 1000, lambda count: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run)
            nursery.start_soon(read_on, connection)
            for k, message in enumerate(messages):
                sent: list[int] = []
                frame = k if isinstance(message, bytes) else None
                box.post(Item(message, frame, frame is not None, lambda sent=sent: sent.append(1)))
                at_once[0] += len(sent)
                if k % 7 == 6:
                    await trio.sleep(0.01)
            box.close()
            await done.wait()
            nursery.cancel_scope.cancel()

    async def read_on(connection: DuplexServerConnection) -> None:
        while True:
            await connection.recv()

    async def talk(client: DuplexClientConnection) -> None:
        got = []
        for k in range(len(messages)):
            if k % 4 == 0:
                await trio.sleep(0.02)
                pong = await client.ping()
            got.append(await client.recv())
            await client.send(b"x" * 1000)  # the server reads on, whatever it is sending
        assert got == messages
        await pong.wait()
        done.set()

    run(handle, talk)
    assert at_once[0] > 0, "some were sent without waiting"


def test_nothing_is_begun_while_another_message_is_on_its_way() -> None:
    done = trio.Event()

    async def handle(connection: DuplexServerConnection) -> None:
        large, count = bytes(1 << 20), 0
        while not connection.unsent:
            assert connection.send_now(large)
            count += 1
        assert not connection.send_now(b"no")
        async with connection.send_lock:  # as whoever sends holds it
            assert not connection.send_now(b"nor now")
        await connection.send(str(count))
        assert not connection.unsent
        assert connection.send_now("last")
        await done.wait()

    async def talk(client: DuplexClientConnection) -> None:
        count = 0
        while isinstance(message := await client.recv(), bytes):
            assert message == bytes(1 << 20)
            count += 1
        assert message == str(count)
        assert await client.recv() == "last"
        done.set()

    run(handle, talk)


def test_a_peer_that_has_gone_is_noticed_by_who_flushes() -> None:
    found: list[str] = []

    async def handle(connection: DuplexServerConnection) -> None:
        socket = StreamSocket(connection, 0)
        box = Outbox(socket, 1000, lambda count: None)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(box.run)
                for k in range(1000):
                    box.post(Item(bytes(100_000), k, True))
                    await trio.sleep(0.001)
        except* Exception as group:
            found.extend(type(error).__name__ for error in group.exceptions)

    async def talk(client: DuplexClientConnection) -> None:
        await client.recv()
        await trio.aclose_forcefully(client.stream)
        await trio.sleep(0.5)

    run(handle, talk)
    assert found == ["SocketClosedError"]


@pytest.mark.clock
def test_a_peer_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by who only pings: what waits before it never leaves."""
    monkeypatch.setattr(DuplexServerConnection, "unread_s", 0.3)
    ended = trio.Event()

    async def handle(connection: DuplexServerConnection) -> None:
        socket = StreamSocket(connection, 0)

        async def send_on() -> None:
            while True:
                await socket.send(bytes(1 << 20))

        with pytest.raises(SocketClosedError):
            await send_on()
        ended.set()

    async def talk(client: DuplexClientConnection) -> None:
        await ended.wait()
        await client.stream.aclose()

    run(handle, talk)


@pytest.mark.clock
def test_a_peer_that_reads_slowly_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long one message takes, as long as some of it is taken now and then."""
    monkeypatch.setattr(DuplexServerConnection, "unread_s", 1.0)
    message, took = bytes(12 << 20), [0.0]

    async def handle(connection: DuplexServerConnection) -> None:
        begun = trio.current_time()
        await connection.send(message)
        took[0] = trio.current_time() - begun

    async def talk(client: DuplexClientConnection) -> None:
        receive = client.stream.receive_some

        async def slowly(most: int | None = None) -> bytes | bytearray:
            await trio.sleep(0.05)
            return await receive(256 << 10)

        monkeypatch.setattr(type(client.stream), "receive_some", lambda _, most=None: slowly(most))
        assert await client.recv() == message
        await trio.sleep(0.1)

    run(handle, talk)
    assert took[0] > 1.0
