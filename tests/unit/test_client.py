# SPDX-License-Identifier: Apache-2.0
"""The client library under trio and asyncio, against a scripted server on a real socket."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import pytest
import trio
from PIL import Image
from scripted import LIBRARIES, STARTED, media, quiet, run, say, scripted, until_stop
from websockets.sync.server import ServerConnection

import lipsync_fast
from lipsync_fast import client
from lipsync_fast.client import (
    AudioFrame,
    ErrorMessage,
    Event,
    Pong,
    Session,
    SessionError,
    SessionInterrupted,
    SessionOverloaded,
    UtteranceEnded,
    VideoFrame,
)
from lipsync_fast.errors import AudioFormatError, ProtocolError
from lipsync_fast.geometry import Rect
from lipsync_fast_client.events import media_event
from lipsync_fast_client.protocol import (
    MediaFlag,
    MediaType,
    ServerMessage,
)


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_proxy_leads_to_this_machine(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("http", "https", "ws", "wss", "socks", "all"):
        monkeypatch.setenv(f"{kind}_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)

    async def client() -> None:
        async with lipsync_fast.connect(server.url) as session:
            assert session.started == STARTED

    with scripted(quiet) as server:
        run(library, client)


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_sent(library: str) -> None:
    async def client() -> None:
        async with lipsync_fast.connect(
            server.url,
            avatar="ann",
            sample_rate=8000,
            channels=2,
            pace="burst",
            quality=70,
            token="secret",
        ) as session:
            assert session.started == STARTED
            await session.send(b"\1\2\3")
            await session.send(np.array([[1.0, -1.0], [0.5, np.nan]], np.float32))
            await session.send(np.array([[1, 2]], np.int16))
            await session.end_utterance()
            await session.interrupt()
            await session.update(max_width=320)
            await session.update(avatar="bob")
            await session.ping(7)

    with scripted(quiet) as server:
        run(library, client)
        assert server.ended.wait(20)
    start, raw, floats, ints, *rest = server.heard
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert server.headers[0]["Sec-WebSocket-Protocol"] == "lipsync.v1"
    assert start["type"] == "session.start"
    assert start["avatar"] == "ann"
    assert start["pace"] == "burst"
    assert start["audio"] == {"sample_rate": 8000, "format": "s16le", "channels": 2}
    assert start["video"]["quality"] == 70
    assert raw == b"\1\2\3"
    assert np.frombuffer(floats, "<i2").tolist() == [32767, -32768, 16384, 0]
    assert np.frombuffer(ints, "<i2").tolist() == [1, 2]
    assert [m["type"] for m in rest] == [
        "utterance.end", "session.interrupt", "session.update", "session.update", "ping",
        "session.stop",
    ]  # fmt: skip
    assert rest[2]["video"] == {
        "content": "frame", "codec": "jpeg", "quality": 70, "max_width": 320, "bitrate": None,
    }  # fmt: skip
    assert rest[3] == {
        "type": "session.update", "avatar": "bob", "video": None, "pictures": None,
    }  # fmt: skip
    assert rest[4]["id"] == 7


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_comes(library: str) -> None:
    messages: list[ServerMessage] = [
        SessionOverloaded(retry_after_ms=2000),
        SessionInterrupted(last_frame=3),
        ErrorMessage(code="bad_request", message="never mind", fatal=False),
        UtteranceEnded(utterance=1, frames=5, dropped=1),
        Pong(id="x"),
    ]
    flags = MediaFlag.FIRST | MediaFlag.REPEATED

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        connection.send(
            media(MediaType.MOUTH, b"jpeg", flags=flags, sequence=4, utterance=2, pts_us=80_000,
                  avatar_frame=9, box=Rect(1, 2, 3, 4))
        )  # fmt: skip
        connection.send(media(MediaType.FRAME, b"whole", flags=MediaFlag.IDLE))
        connection.send(media(MediaType.AUDIO, b"\0\0", pts_us=40_000, utterance=2))
        say(connection, *messages)
        connection.close(1000)

    async def client() -> list[Event]:
        async with lipsync_fast.connect(server.url) as session:
            return [event async for event in session]

    with scripted(script) as server:
        mouth, whole, audio, *rest = run(library, client)
    assert isinstance(mouth, VideoFrame)
    assert isinstance(whole, VideoFrame)
    assert isinstance(audio, AudioFrame)
    assert (mouth.jpeg, mouth.content, mouth.kind) == (b"jpeg", "mouth", "speech")
    assert (mouth.first, mouth.last, mouth.repeated) == (True, False, True)
    assert (mouth.box, mouth.avatar_frame, mouth.sequence, mouth.utterance) == (
        Rect(1, 2, 3, 4),
        9,
        4,
        2,
    )
    assert mouth.pts == Fraction(2, 25)
    assert (whole.kind, whole.content, whole.first) == ("idle", "frame", False)
    assert (audio.pcm, audio.pts, audio.utterance) == (b"\0\0", Fraction(1, 25), 2)
    assert rest == messages


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_refused_start_is_an_error_with_its_code(library: str) -> None:
    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, ErrorMessage(code="unknown_avatar", message="no such avatar", fatal=False))
        until_stop(connection, heard)

    async def client() -> None:
        async with lipsync_fast.connect(server.url, avatar="nobody"):
            raise AssertionError("must not begin")

    with scripted(script) as server, pytest.raises(SessionError, match="no such avatar") as caught:
        run(library, client)
    assert caught.value.code == "unknown_avatar"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("status", "code", "retry"),
    [(401, "unauthorized", None), (403, "unauthorized", None), (503, "overloaded", 3.0)],
)
def test_a_refused_upgrade(library: str, status: int, code: str, retry: float | None) -> None:
    async def client() -> None:
        async with lipsync_fast.connect(server.url):
            raise AssertionError("must not begin")

    headers = {} if retry is None else {"Retry_After": "3"}
    with (
        scripted(quiet, status, **headers) as server,
        pytest.raises(SessionError, match="no, thank you") as caught,
    ):
        run(library, client)
    assert (caught.value.code, caught.value.retry_after_s) == (code, retry)


@pytest.mark.parametrize("library", LIBRARIES)
def test_nobody_listens(library: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused

        async def client() -> None:
            async with lipsync_fast.connect(f"ws://127.0.0.1:{held.getsockname()[1]}"):
                raise AssertionError("must not begin")

        with pytest.raises(SessionError) as caught:
            run(library, client)
    assert caught.value.code == "connection"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("how", ["fatal", "going away", "vanished"])
def test_the_end_of_a_session_that_nobody_wished_for(library: str, how: str) -> None:
    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        if how == "fatal":
            say(connection, ErrorMessage(code="bad_request", message="100 mistakes", fatal=True))
        elif how == "going away":
            connection.close(1001, "the server is going away")
        else:
            connection.socket.shutdown(socket.SHUT_RDWR)

    async def client() -> None:
        async with lipsync_fast.connect(server.url) as session:
            async for _ in session:
                raise AssertionError("nothing was said")

    with scripted(script) as server, pytest.raises(SessionError) as caught:
        run(library, client)
    assert caught.value.code == ("bad_request" if how == "fatal" else "connection")


def test_a_picture_is_decoded_when_it_is_asked_for() -> None:
    pixels = np.full((6, 8, 3), (200, 100, 50), np.uint8)
    for mode in ("RGB", "L"):
        encoded = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(encoded, "JPEG", quality=95)
        frame = media_event(media(MediaType.FRAME, encoded.getvalue(), sequence=7))
        assert isinstance(frame, VideoFrame)
        assert (frame.image.mode, frame.image.size) == ("RGB", (8, 6))
        expected = pixels if mode == "RGB" else np.asarray(Image.fromarray(pixels).convert("L"))
        off = np.asarray(frame.image).astype(int) - (
            expected if mode == "RGB" else expected[:, :, None]
        )
        assert abs(off).max() < 8
        assert "jpeg" not in repr(frame)
        assert len(repr(frame)) < 200
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    for wrong in (b"", b"no picture", encoded.getvalue()[:100], png.getvalue()):
        frame = media_event(media(MediaType.FRAME, wrong, sequence=7))
        assert isinstance(frame, VideoFrame)
        with pytest.raises(ProtocolError, match="picture 7 cannot be decoded: "):
            frame.image  # noqa: B018


@pytest.mark.parametrize("library", LIBRARIES)
def test_leaving_while_much_is_unread(library: str) -> None:
    """A client that has not read ends its session all the same, and the server hears of it."""

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        for sequence in range(60):
            connection.send(media(MediaType.FRAME, bytes(2000), sequence=sequence))
        until_stop(connection, heard)

    async def client() -> None:
        async with lipsync_fast.connect(server.url) as session:
            await session.end_utterance()

    with scripted(script) as server:
        run(library, client)
        assert server.ended.wait(20)
    assert server.heard[-1] == {"type": "session.stop"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_who_waits_in_send_still_reads(library: str) -> None:
    """Else both ends would wait for each other for ever."""
    much = bytes(40 << 20)

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        for sequence in range(400):  # reads nothing until the client has taken all of it
            connection.send(media(MediaType.FRAME, bytes(50_000), sequence=sequence))
        until_stop(connection, heard)

    async def read(session: Session) -> None:
        for sequence in range(400):
            event = await anext(session)
            assert isinstance(event, VideoFrame)
            assert event.sequence == sequence

    async def client() -> None:
        async with lipsync_fast.connect(server.url) as session:
            if library == "trio":
                with trio.fail_after(60):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(session.send, much)
                        nursery.start_soon(read, session)
            else:
                async with asyncio.timeout(60):
                    await asyncio.gather(session.send(much), read(session))

    with scripted(script) as server:
        run(library, client)
        assert server.ended.wait(20)
    assert sum(len(m) for m in server.heard if isinstance(m, bytes)) == len(much)


@pytest.mark.parametrize("library", LIBRARIES)
def test_leaving_a_server_that_does_not_read(library: str) -> None:
    left = threading.Event()

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        assert left.wait(60)
        connection.socket.shutdown(socket.SHUT_RDWR)

    async def client() -> None:
        async with lipsync_fast.connect(server.url) as session:
            if library == "trio":
                with trio.move_on_after(0.5):
                    await session.send(bytes(40 << 20))
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(session.send(bytes(40 << 20)), 0.5)

    with scripted(script) as server:
        run(library, client)
        left.set()


def test_cancelled_under_trio_the_connection_is_closed() -> None:
    async def client() -> None:
        with trio.CancelScope() as scope:
            async with lipsync_fast.connect(server.url) as session:
                scope.cancel()
                async for _ in session:
                    raise AssertionError("nothing was said")
        assert scope.cancelled_caught

    with scripted(quiet) as server:
        trio.run(client)
        assert server.ended.wait(20)


def test_cancelled_under_asyncio_it_still_says_goodbye() -> None:
    async def talk(begun: asyncio.Event) -> None:
        async with lipsync_fast.connect(server.url) as session:
            begun.set()
            async for _ in session:
                raise AssertionError("nothing was said")

    async def client() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(talk(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with scripted(quiet) as server:
        asyncio.run(client())
        assert server.ended.wait(20)
    assert server.heard[-1] == {"type": "session.stop"}


def test_cancelled_iteration_loses_nothing() -> None:
    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        connection.recv(20)
        say(connection, Pong(id=1), Pong(id=2))
        until_stop(connection, heard)

    async def client() -> None:
        async with lipsync_fast.connect(server.url) as session:
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(session)
            await session.ping(1)
            assert [await anext(session), await anext(session)] == [Pong(id=1), Pong(id=2)]

    with scripted(script) as server:
        trio.run(client)


@pytest.mark.parametrize("library", LIBRARIES)
def test_errors_of_the_caller_pass_unchanged(library: str) -> None:
    """Groups too: websockets' own task group must not see them."""
    wanted = ExceptionGroup("two", [ValueError("a"), KeyError("b")])

    async def client() -> None:
        async with lipsync_fast.connect(server.url):
            raise wanted

    with scripted(quiet) as server, pytest.raises(ExceptionGroup) as caught:
        run(library, client)
    assert caught.value is wanted


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_array_of_other_channels(library: str) -> None:
    async def client() -> None:
        async with lipsync_fast.connect(server.url) as session:
            await session.send(np.zeros((10, 2), np.float32))

    with scripted(quiet) as server, pytest.raises(AudioFormatError, match="expected 1 channel"):
        run(library, client)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"sample_rate": 7}, "sample_rate 7: expected int >= 8000"),
        ({"sample_rate": "16k"}, "sample_rate '16k': expected int"),
        ({"channels": 3}, "channels 3"),
        ({"format": "mp3"}, "format 'mp3': expected s16le or f32le"),
        ({"content": "face"}, "content 'face': expected frame or mouth"),
        ({"pace": "fast"}, "pace 'fast': expected live or burst"),
        ({"quality": 0}, "quality 0"),
        ({"max_width": 9000}, "max_width 9000"),
        ({"avatar": 7}, "avatar 7: expected str"),
        ({"idle": "no"}, "idle 'no': expected bool"),
        ({"token": "a\r\nb"}, "token: expected a string without line breaks"),
        ({"open_timeout": 0}, "open_timeout 0: expected seconds"),
        ({"keepalive": 0}, "keepalive 0: expected seconds"),
        ({"ssl": True}, "ssl: 'ws://127.0.0.1:1' speaks no TLS; expected wss://…"),
        ({"url": "http://127.0.0.1:1"}, "url 'http://127.0.0.1:1': expected ws://"),
        ({"url": None}, "url None"),
    ],
)
def test_arguments_are_checked_before_anything_is_opened(named: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        lipsync_fast.connect(**{"url": "ws://127.0.0.1:1", **named})


def test_numbers_of_numpy_will_do() -> None:
    lipsync_fast.connect("ws://127.0.0.1:1", sample_rate=np.int64(24_000), quality=np.uint8(60))  # type: ignore[arg-type]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("format", ["s16le", "f32le"])
def test_samples_that_are_not_finite_are_counted_and_told(
    library: str, format: Literal["s16le", "f32le"]
) -> None:
    async def client() -> None:
        async with lipsync_fast.connect(server.url, format=format) as session:
            await session.send(np.array([0.5, np.nan, np.inf, -0.5], np.float32))
            assert session.warnings == ["2 samples were not finite and were treated as silence"]
            for wrong in ("speech", None, [object()]):
                with pytest.raises(AudioFormatError, match="pcm of type"):
                    await session.send(wrong)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="quality 101"):
                await session.update(quality=101)
            with pytest.raises(ValueError, match="name ''"):
                await session.say("")
            assert repr(session) == "Session('s1', avatar='demo')"

    with scripted(quiet) as server:
        run(library, client)


def test_connect_needs_a_running_loop() -> None:
    connecting = lipsync_fast.connect("ws://127.0.0.1:1").__aenter__()
    with pytest.raises(RuntimeError, match="trio or asyncio"):
        connecting.send(None)


def test_importing_the_client_loads_no_library_of_sockets() -> None:
    program = (
        "import sys, lipsync_fast; lipsync_fast.connect;"
        "print(*sorted({'websockets', 'trio', 'asyncio', 'numpy', 'zmq'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_the_package_exports_what_its_users_name() -> None:
    for name in lipsync_fast.__all__:
        assert getattr(lipsync_fast, name) is not None
    assert lipsync_fast.SessionError is SessionError
    assert {kind.__name__ for kind in get_args(Event)} <= set(client.__all__)
    code = "import sys, lipsync_fast\nlipsync_fast.errors.MediaError\nprint(*sys.modules)"
    loaded = [
        set(subprocess.run([sys.executable, "-P", "-c", c], capture_output=True, text=True,
                           check=True).stdout.split())
        for c in (code, code.replace("lipsync_fast.errors.MediaError", "lipsync_fast.__version__"))
    ]  # fmt: skip
    theirs = {"lipsync_fast_client", "lipsync_fast_client.version", "lipsync_fast_client.errors"}
    assert loaded[0] - loaded[1] == {"lipsync_fast.errors", "errno", *theirs}, (
        "the errors load nothing else"
    )
