# SPDX-License-Identifier: Apache-2.0
"""Messages that are sent without waiting: nothing is torn, lost, or overtaken.

And a server's connection has its turn like all others, however many frames its peer sends.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from certificates import Authority
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode
from websockets.trio.client import connect
from websockets.trio.server import serve

from lipsync_fast import turns
from lipsync_fast.config import Listen
from lipsync_fast.duplex import DuplexServerConnection
from lipsync_fast.errors import SocketClosedError
from lipsync_fast.frontend.access.secure import Security
from lipsync_fast.frontend.listen.stream import StreamSocket
from lipsync_fast.frontend.session.outbox import Item, Outbox
from lipsync_fast.tls import read_certificate
from lipsync_fast.turns import EMPTY_A_SECOND, EMPTY_AT_ONCE, InTurns, Turn
from lipsync_fast_client.duplex import DuplexClientConnection

Handle = Callable[[DuplexServerConnection], Awaitable[None]]
Talk = Callable[[DuplexClientConnection], Awaitable[None]]


def run(
    handle: Handle,
    talk: Talk,
    served: type[DuplexServerConnection] = DuplexServerConnection,
    authority: Authority | None = None,
) -> None:
    """A server's connection and a client's, over a real socket; by TLS with an authority."""
    security = Security(None, lambda: None)
    trusted = None
    if authority is not None:
        both = str(authority.issue("server").with_suffix(".both"))
        security = Security(read_certificate(Listen(tls_cert=both)), lambda: None)
        trusted = authority.trusted()

    def accepted(nursery: trio.Nursery, stream: Any, *others: Any, **named: Any) -> Any:
        return served(nursery, security.over(stream), *others, **named)

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:

                async def start(task_status: trio.TaskStatus[object]) -> None:
                    await serve(
                        handle,  # type: ignore[arg-type]
                        port=0,
                        host="127.0.0.1",
                        compression=None,
                        create_connection=accepted,  # type: ignore[arg-type]
                        task_status=task_status,  # type: ignore[arg-type]
                    )

                server = await nursery.start(start)
                port = server.listeners[0].socket.getsockname()[1]
                async with connect(
                    f"{'ws' if trusted is None else 'wss'}://127.0.0.1:{port}/",
                    ssl=trusted,
                    compression=None,
                    max_size=None,
                    create_connection=DuplexClientConnection,
                ) as client:
                    await talk(client)  # type: ignore[arg-type]
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.fixture(params=["plain", "TLS"])
def authority(request: pytest.FixtureRequest, tmp_path: Path) -> Authority | None:
    """Of the server's certificate; None without TLS."""
    return None if request.param == "plain" else Authority(tmp_path)


@pytest.mark.clock
def test_what_the_kernel_does_not_take_at_once_follows_in_order(
    authority: Authority | None,
) -> None:
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

    run(handle, talk, authority=authority)
    assert at_once[0] > 0, "some were sent without waiting"


def test_nothing_is_begun_while_another_message_is_on_its_way(authority: Authority | None) -> None:
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

    run(handle, talk, authority=authority)


def test_a_peer_that_has_gone_is_noticed_by_who_flushes(authority: Authority | None) -> None:
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

    run(handle, talk, authority=authority)
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


# ---------------------------------------------------------------- turns
def test_a_connection_with_more_to_read_than_is_kept_can_be_abandoned() -> None:
    """Its reader waits for somebody to take what it has read: it ends all the same."""
    left = trio.Event()

    async def handle(connection: DuplexServerConnection) -> None:
        for _ in range(200):
            await connection.send("said")
        await left.wait()

    async def talk(client: DuplexClientConnection) -> None:
        while client.recv_flow_control is None:
            await trio.sleep(0.001)
        await client.abandon()
        with trio.fail_after(10):
            await client.wait_closed()
        left.set()

    run(handle, talk)


def empty(opcode: Opcode, count: int) -> bytes:
    """So many frames without a byte in them, as clients send them: masked."""
    return bytes([0x80 | opcode, 0x80, 0, 0, 0, 0]) * count


def put(client: DuplexClientConnection, data: bytes) -> None:
    """Have all of it in the kernel before anything else happens in this process."""
    stream = client.stream
    assert isinstance(stream, trio.SocketStream)
    assert os.write(stream.socket.fileno(), data) == len(data)


@pytest.mark.parametrize("opcode", [Opcode.PONG, Opcode.PING, Opcode.BINARY])
def test_others_have_their_turn_while_a_peer_sends_empty_frames(
    opcode: Opcode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in turns, not in time: nobody waits for more frames than are in a slice."""
    monkeypatch.setattr(turns, "EMPTY_AT_ONCE", math.inf)
    count, begun, done = 5000, trio.Event(), trio.Event()
    passed, came = [0], [0]  # turns of somebody else, and frames since the last one
    most, sent = [0], [0]

    class Watched(DuplexServerConnection):
        def process_event(self, event: object) -> None:
            super().process_event(event)
            came[0] += 1
            most[0] = max(most[0], came[0])

    async def send_all(self: InTurns, data: bytes) -> None:
        sent[0] += 1
        await self._stream.send_all(data)

    monkeypatch.setattr(InTurns, "send_all", send_all)

    async def handle(connection: DuplexServerConnection) -> None:
        begun.set()
        while True:
            message = await connection.recv()
            if message == "the last":
                break
            assert message == b""
        done.set()

    async def talk(client: DuplexClientConnection) -> None:
        await begun.wait()
        put(client, empty(opcode, count))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def somebody_else() -> None:
                while not done.is_set():
                    passed[0] += 1
                    came[0] = 0
                    await trio.lowlevel.checkpoint()

            await client.send("the last")

    run(handle, talk, Watched)
    assert most[0] <= 1000
    assert passed[0] >= count // 1000
    assert sent[0] < 50, "answers leave together"


@pytest.mark.parametrize("opcode", [Opcode.PONG, Opcode.PING, Opcode.BINARY])
def test_a_peer_that_says_nothing_too_often_is_told_so_and_closed(opcode: Opcode) -> None:
    counted: list[int] = []
    begun, closed = trio.Event(), trio.Event()

    async def handle(connection: DuplexServerConnection) -> None:
        connection.on_chatter = lambda: counted.append(1)
        begun.set()

        async def read_on() -> None:
            while True:
                await connection.recv()

        with pytest.raises(ConnectionClosed):
            await read_on()
        closed.set()

    async def talk(client: DuplexClientConnection) -> None:
        await begun.wait()
        put(client, empty(opcode, 5 * EMPTY_AT_ONCE))
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, turns.WHY)
        await closed.wait()

    run(handle, talk)
    assert counted == [1]


def test_a_peer_may_say_nothing_now_and_then() -> None:
    async def main() -> None:
        turn = Turn()
        assert not any(turn.count(False) for _ in range(100_000))
        assert not any(turn.count(True) for _ in range(EMPTY_AT_ONCE))
        assert turn.count(True)
        turn = Turn()
        for _ in range(1000):  # for ever
            assert not any(turn.count(True) for _ in range(EMPTY_A_SECOND // 10))
            await trio.sleep(0.1)
        assert any(turn.count(True) for _ in range(2 * EMPTY_AT_ONCE))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
