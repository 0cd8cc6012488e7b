# SPDX-License-Identifier: Apache-2.0
"""A client whose server has gone, and comes back, or does not."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from typing import Any

import pytest
import trio
from scripted import LIBRARIES, STARTED, Script, media, run, say, scripted, until_stop
from websockets.sync.server import ServerConnection

import lipsync_fast_client
from lipsync_fast_client import (
    ConnectionLost,
    ErrorMessage,
    Reconnected,
    Session,
    SessionError,
    VideoFrame,
    outage,
)
from lipsync_fast_client.keeping import keep_session
from lipsync_fast_client.outage import LONGEST_S, PATIENCE_S, Outage, patience
from lipsync_fast_client.protocol import MediaType


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_S", 0.01)


def vanish(connection: ServerConnection) -> None:
    connection.socket.shutdown(socket.SHUT_RDWR)


def leave(connection: ServerConnection) -> None:
    connection.close(1001, "the server is about to leave")


def fall(connection: ServerConnection) -> None:
    say(connection, ErrorMessage(code="internal", message="a defect", fatal=True))


ENDS = [vanish, leave, fall]


def first_then(end: Any, rest: Script) -> Script:
    """A server that ends its first session once it has heard some sound."""
    count = itertools.count()

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        if next(count):
            rest(connection, heard)
            return
        for message in connection:
            heard.append(message)
            if isinstance(message, bytes):
                break
        end(connection)

    return script


def test_a_session_is_kept_for_as_long_as_one_likes() -> None:
    """A server that is not there, that leaves, that comes back: each is told once, in order."""
    told: list[str] = []

    def again(connection: ServerConnection, heard: list[Any]) -> None:
        connection.send(media(MediaType.FRAME, b"anew", utterance=0))
        until_stop(connection, heard)

    with scripted(first_then(leave, again)) as server:
        urls = itertools.chain(["ws://127.0.0.1:9"], itertools.repeat(server.url))

        async def client() -> None:
            seen = asyncio.Event()
            sessions: list[Session] = []

            def found(session: Session) -> None:
                told.append("found")
                sessions.append(session)
                if len(sessions) == 1:
                    speaking.append(asyncio.create_task(session.send(b"\1\1")))

            async def take(event: Any) -> None:
                told.append(type(event).__name__)
                seen.set()

            async def lost(reason: str) -> None:
                told.append(reason)

            speaking: list[asyncio.Task[None]] = []
            keeping = asyncio.create_task(
                keep_session(lambda: lipsync_fast_client.connect(next(urls)), found, take, lost)
            )
            await asyncio.wait_for(seen.wait(), 20)
            keeping.cancel()
            await asyncio.gather(keeping, *speaking, return_exceptions=True)

        asyncio.run(client())
    nobody, first, gone, second, picture = told
    assert "127.0.0.1:9" in nobody
    assert (first, second, picture) == ("found", "found", "VideoFrame")
    assert "the server is about to leave" in gone


@pytest.mark.parametrize("library", LIBRARIES)
def test_who_vanishes_without_a_word_is_noticed(
    library: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that is cut off: its connection is open, and nothing answers."""
    ended = threading.Event()

    def fall_silent(connection: ServerConnection) -> None:
        with connection.protocol_mutex:  # what answers pings waits for it
            ended.wait(60)

    async def client() -> list[Any]:
        async with lipsync_fast_client.connect(server.url, reconnect=60, keepalive=0.2) as session:
            await session.send(b"\1\1")
            return [await anext(session), await anext(session)]

    with scripted(first_then(fall_silent, quiet_again)) as server:
        try:
            lost, back = run(library, client)
        finally:
            ended.set()
    assert isinstance(lost, ConnectionLost)
    assert (lost.unfinished, isinstance(back, Reconnected)) == (1, True)
    ours = [r for r in caplog.records if not r.name.startswith("websockets.server")]
    assert not ours, "whoever iterates is told, and nobody else"


def quiet_again(connection: ServerConnection, heard: list[Any]) -> None:
    until_stop(connection, heard)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("end", ENDS)
def test_a_new_session_has_the_same_settings(library: str, end: Any) -> None:
    def again(connection: ServerConnection, heard: list[Any]) -> None:
        connection.send(media(MediaType.FRAME, b"anew", utterance=0))
        until_stop(connection, heard)

    async def client() -> list[Any]:
        got: list[Any] = []
        async with lipsync_fast_client.connect(
            server.url, sample_rate=8000, echo_audio=True, token="t", reconnect=60
        ) as session:
            await session.update(max_width=320, pictures=True)
            await session.send(b"\1\1")
            got.append(await anext(session))
            await session.send(b"the rest")
            await session.interrupt()
            await session.send(b"missed")
            await session.update(quality=50)
            await session.ping(1)
            got += [await anext(session), await anext(session)]
            await session.send(b"\2\2")  # the rest of what was begun meanwhile
            await session.end_utterance()
            await session.send(b"\3\3")
            await session.end_utterance()
        return got

    with scripted(first_then(end, again)) as server:
        lost, back, picture = run(library, client)
    assert isinstance(lost, ConnectionLost)
    assert lost.unfinished == 1
    assert isinstance(back, Reconnected)
    assert (back.attempts, back.missed) == (1, 1)
    assert isinstance(picture, VideoFrame)
    kinds = [m["type"] if isinstance(m, dict) else m for m in server.heard]
    first, second = (n for n, kind in enumerate(kinds) if kind == "session.start")
    starts = server.heard[first], server.heard[second]
    jpegs = {"content": "frame", "codec": "jpeg", "bitrate": None}
    assert starts[0].pop("video") == {**jpegs, "quality": None, "max_width": None}
    assert starts[1].pop("video") == {**jpegs, "quality": 50, "max_width": 320}
    assert starts[0] == starts[1]
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer t"] * 2
    assert kinds[second + 1 :] == [b"\3\3", "utterance.end", "session.stop"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_it_is_tried_again_until_the_server_is_back(library: str) -> None:
    def refuse(connection: ServerConnection) -> None:
        server.status = 503
        vanish(connection)

    async def client() -> Any:
        async with lipsync_fast_client.connect(server.url, reconnect=True) as session:
            await session.send(b"\1\1")
            assert isinstance(await anext(session), ConnectionLost)
            for _ in range(3):  # cancelled as often as somebody likes, it goes on
                if library == "trio":
                    with trio.move_on_after(0.1):
                        raise AssertionError(await anext(session))
                else:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(anext(session), 0.1)
            server.status = 0
            return await anext(session)

    with scripted(first_then(refuse, until_stop), retry_after="0") as server:
        back = run(library, client)
        assert server.ended.wait(20)
    assert isinstance(back, Reconnected)
    assert back.attempts >= 2
    assert back.seconds > 0.3


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(503, "overloaded", "gone for . s, and not back: no, thank"), (401, "unauthorized", "thank")],
)
def test_a_server_that_is_not_back(library: str, status: int, code: str, words: str) -> None:
    def refuse(connection: ServerConnection) -> None:
        server.status = status
        vanish(connection)

    async def client() -> None:
        seconds = 0.2 if status == 503 else 600  # who is not wanted does not insist
        async with lipsync_fast_client.connect(server.url, reconnect=seconds) as session:
            await session.send(b"\1\1")
            assert isinstance(await anext(session), ConnectionLost)
            with pytest.raises(SessionError, match=words) as caught:
                await anext(session)
            assert caught.value.code == code
            for again in (session.send(b"\1\1"), anext(session), session.interrupt()):
                with pytest.raises(SessionError):
                    await again

    with scripted(first_then(refuse, until_stop)) as server:
        run(library, client)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("close", "reconnect"), [(1008, True), (1009, True), (1001, False), (1000, True)]
)
def test_what_would_only_happen_again_is_not_tried(
    library: str, close: int, reconnect: bool
) -> None:
    def end(connection: ServerConnection) -> None:
        connection.close(close, "so it is")

    async def client() -> None:
        async with lipsync_fast_client.connect(server.url, reconnect=reconnect) as session:
            await session.send(b"\1\1")
            async for event in session:
                raise AssertionError(event)
            assert close == 1000
            raise SessionError("connection", "so it is")

    with (
        scripted(first_then(end, until_stop)) as server,
        pytest.raises(SessionError, match="so it is"),
    ):
        run(library, client)
    assert len(server.headers) == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_change_that_was_refused_is_not_repeated(library: str) -> None:
    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        for message in connection:
            if '"session.update"' in str(message):
                code = "unknown_avatar" if '"nobody"' in str(message) else None
                say(
                    connection,
                    ErrorMessage(code=code, message="no such avatar", fatal=False)
                    if code
                    else STARTED,
                )
            elif isinstance(message, bytes) and len(heard) == 1:
                vanish(connection)

    async def client() -> None:
        async with lipsync_fast_client.connect(server.url, reconnect=60) as session:
            await session.update(avatar="ann")
            await session.update(avatar="nobody")
            assert await anext(session) == STARTED
            assert isinstance(await anext(session), ErrorMessage)
            await session.send(b"\1\1")
            assert isinstance(await anext(session), ConnectionLost)
            assert isinstance(await anext(session), Reconnected)

    with scripted(script) as server:
        run(library, client)
    assert [start["avatar"] for start in server.heard] == ["", "ann"]


def test_leaving_while_it_is_tried() -> None:
    def refuse(connection: ServerConnection) -> None:
        server.status = 503
        vanish(connection)

    async def read(session: Session) -> None:
        async for _ in session:
            pass

    async def client() -> None:
        async with lipsync_fast_client.connect(server.url, reconnect=True) as session:
            await session.send(b"\1\1")
            reading = asyncio.create_task(read(session))
            while len(server.headers) < 3:
                await asyncio.sleep(0.01)
            server.status = 0
        done, _ = await asyncio.wait([reading], timeout=20)
        assert done, "it ends, whether it was back or not"
        error = reading.exception()
        assert error is None or isinstance(error, SessionError)

    with scripted(first_then(refuse, until_stop)) as server:
        asyncio.run(client())


def test_pauses_grow_and_are_bounded() -> None:
    now = [0.0]
    for chance in (0.0, 1.0):
        gone = Outage(1000.0, clock=lambda: now[0], chance=lambda: chance)  # noqa: B023
        pauses = []
        for attempt in range(40):
            gone.attempts = attempt
            pauses.append(gone.pause_s())
        assert pauses == sorted(pauses)
        assert pauses[0] == pytest.approx(0.01 * (0.5 + chance / 2))
        assert pauses[-1] == LONGEST_S * (0.5 + chance / 2)
        gone.retry_after_s = 7.0
        assert gone.pause_s() == pauses[-1] + 7, "what the server asks for is kept to"
    now[0] = 3.0
    assert gone.wait_s() == pauses[-1] + 7
    now[0] = 4.0
    assert gone.wait_s() == pauses[-1] + 6, "whoever is cancelled does not wait anew"
    gone.attempt()
    now[0] = 0.0
    gone.retry_after_s = 1e9
    assert gone.pause_s() == 1000, "as long as there is patience"
    now[0] = 1001.0
    assert (gone.pause_s(), gone.left_s, gone.seconds) == (0, 0, 1001)


def test_what_reconnect_may_be() -> None:
    assert patience(False) is None
    assert patience(True) == PATIENCE_S
    assert patience(5) == 5.0
    for wrong in (0, -1, float("nan"), "yes", None):
        with pytest.raises(ValueError, match=r"reconnect .*: expected True, False, or seconds"):
            lipsync_fast_client.connect("ws://127.0.0.1:1", reconnect=wrong)  # type: ignore[arg-type]


def test_reprs_hold_no_secrets_and_no_bytes() -> None:
    connecting = lipsync_fast_client.connect("ws://127.0.0.1:1", token="secret")
    assert repr(connecting) == "Connecting('ws://127.0.0.1:1')"
