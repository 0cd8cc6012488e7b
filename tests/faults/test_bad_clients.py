# SPDX-License-Identifier: Apache-2.0
"""Clients that lie, vanish, trickle and hoard: the server says so, frees what was theirs, lives."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import trio
from raw_websocket import BINARY, CONTINUATION, PING, PONG, TEXT, ClosedError, RawWebSocket
from serving import until
from talking import (
    ALONE,
    SLOW_MACHINE,
    assert_whole,
    front_load,
    in_trio,
    say,
    speech,
    spoken,
    utterance,
    wait_for,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync import client as sync_client
from websockets.typing import Subprotocol

import lipsync_fast
from lipsync_fast.client import SessionError
from lipsync_fast.client.local import LocalServer

START = '{"type": "session.start", "idle": false}'
HANDSHAKE_S = 1.0
IDLE_S = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    config = {
        "live": {"speakers": 8, **SLOW_MACHINE},
        "limits": {"handshake_s": HANDSHAKE_S, "sessions_per_address": 1000},
        "engines": ALONE,  # a spare that comes brings the front descriptors that stay
    }
    with LocalServer(config) as server:
        yield server


@pytest.fixture(scope="module")
def impatient() -> Iterator[LocalServer]:
    """A server that keeps nobody who says nothing."""
    with LocalServer({"limits": {"idle_s": IDLE_S}, "engines": ALONE}) as server:
        yield server


@pytest.fixture(scope="module")
def small() -> Iterator[LocalServer]:
    """A server for one who speaks at a time, and for three connections of an address."""
    config = {
        "live": {"speakers": 1, "quiet_s": 0.6, **SLOW_MACHINE},
        "limits": {"sessions_per_address": 3},
        "engines": ALONE,
    }
    with LocalServer(config) as server:
        yield server


@pytest.fixture(autouse=True)
def others_are_served(server: LocalServer) -> Iterator[None]:
    """Whatever a test has done: all is freed, nothing has died, and the next client is served."""
    before = server.status()
    yield
    wait_for(server, lambda load: load.connections == 0 == load.sessions, "all have gone")
    after = server.status()
    assert [f.pid for f in after.fronts] == [f.pid for f in before.fronts]
    assert {e.pid for e in before.engines} <= {e.pid for e in after.engines}
    assert all(f.load.errors.get("internal", 0) == 0 for f in after.fronts)
    assert "Traceback" not in server.log()

    @in_trio
    async def one_more() -> None:
        async with lipsync_fast.connect(server.url, pace="burst") as session:
            await say(session, speech(0.2))
            ended, events = await utterance(session, 1)
            assert_whole(ended, spoken(events), 5)

    one_more()


def begun(server: LocalServer, start: str = START) -> RawWebSocket:
    """A connection whose session has been started."""
    connection = RawWebSocket(server.url)
    connection.send(start)
    while True:
        message = connection.receive()
        if isinstance(message, str) and json.loads(message)["type"] == "session.started":
            return connection


def next_of(connection: RawWebSocket, kind: str) -> dict[str, object]:
    """Read up to a text message of that type."""
    while True:
        message = connection.receive()
        if isinstance(message, str):
            found: dict[str, object] = json.loads(message)
            if found["type"] == kind:
                return found


def front_folder(server: LocalServer) -> Path:
    (front,) = server.status().fronts
    return Path(f"/proc/{front.pid}")


def descriptors(server: LocalServer) -> int:
    return len(list((front_folder(server) / "fd").iterdir()))


def wait_until_closed(server: LocalServer, before: int) -> None:
    """Until no more descriptors are open than there were before, but for a few."""
    until(lambda: descriptors(server) <= before + 4, "until descriptors are closed")


def memory_mb(server: LocalServer) -> float:
    about = (front_folder(server) / "status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", about)[0]) / 1024


# ---------------------------------------------------------------- what is said
TEXTS = {
    "no JSON": "hello",
    "empty": "",
    "a list": "[]",
    "a number": "7",
    "unclosed": '{"type": "ping"',
    "deep": '{"type": "ping", "id": ' + "[" * 1000 + "]" * 1000 + "}",
    "very deep": "[" * 1_000_000,
    "no type": '{"avatar": "demo"}',
    "other type": '{"type": "session.steal"}',
    "the server's": '{"type": "session.started"}',
    "wrong field": '{"type": "session.update", "video": {"quality": "high"}}',
    "a long word": '{"type": "' + "x" * 1_000_000 + '"}',
    "a huge number": '{"type": "ping", "id": 1' + "0" * 5000 + "}",
    "zeros": "\0" * 1000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_that_are_no_messages(server: LocalServer, text: str) -> None:
    with begun(server) as connection:
        connection.send(text)
        error = next_of(connection, "error")
        assert (error["code"], error["fatal"]) == ("bad_request", False)
        assert 0 < len(str(error["message"])) < 2000
        connection.send('{"type": "ping", "id": 5}')
        assert next_of(connection, "pong")["id"] == 5


def test_unknown_fields_are_ignored(server: LocalServer) -> None:
    start = json.dumps({**json.loads(START), "new": {"deep": [1, {"x": None}]}, "pace": "burst"})
    with begun(server, start) as connection:
        connection.send(speech(0.2).tobytes())
        connection.send('{"type": "utterance.end", "why": "finished"}')
        assert next_of(connection, "utterance.ended")["frames"] == 5


def test_text_that_is_not_utf_8(server: LocalServer) -> None:
    with begun(server) as connection:
        connection.send_frame(TEXT, b'{"type": "ping", "id": "\xff\xfe"}')
        with pytest.raises(ClosedError) as caught:
            next_of(connection, "pong")
    assert caught.value.code == 1007


@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_a_message_beyond_the_limit(server: LocalServer, kind: int) -> None:
    before = memory_mb(server)
    with begun(server) as connection:
        connection.send_frame(kind, b" " * 10_000_001)
        with pytest.raises(ClosedError) as caught:
            next_of(connection, "pong")
        assert caught.value.code == 1009
    assert memory_mb(server) - before < 100


def test_a_message_beyond_the_limit_in_many_fragments(server: LocalServer) -> None:
    with begun(server) as connection:
        connection.send_frame(BINARY, bytes(1_000_000), last=False)
        with pytest.raises((ClosedError, OSError)):
            forty_more_and_listen(connection)


def forty_more_and_listen(connection: RawWebSocket) -> None:
    for _ in range(40):
        connection.send_frame(CONTINUATION, bytes(1_000_000), last=False)
    next_of(connection, "pong")


def test_lengths_that_lie(server: LocalServer) -> None:
    """A frame that says 2^62 bytes, and one that the protocol forbids."""
    with begun(server) as connection:
        connection.socket.sendall(b"\x82\xff" + (1 << 62).to_bytes(8, "big") + b"mask" + b"data")
        with pytest.raises(ClosedError) as caught:
            next_of(connection, "pong")
        assert caught.value.code == 1009
    with begun(server) as connection:
        connection.socket.sendall(b"\x82\x04none")  # not masked
        with pytest.raises(ClosedError) as caught:
            next_of(connection, "pong")
        assert caught.value.code == 1002


def test_random_bytes_instead_of_frames(server: LocalServer) -> None:
    rng = random.Random(4)
    for _ in range(30):
        with begun(server) as connection:
            connection.socket.sendall(rng.randbytes(rng.randint(2, 3000)))
            connection.socket.shutdown(socket.SHUT_WR)
            with pytest.raises((ClosedError, OSError, AssertionError)):
                next_of(connection, "pong")


def test_random_messages(server: LocalServer) -> None:
    """Random sound is sound; random text is a mistake; a hundred of those are enough."""
    rng = random.Random(5)
    with begun(server) as connection:
        for _ in range(200):
            connection.send(rng.randbytes(rng.randint(0, 700)))
        for _ in range(99):
            connection.send(rng.choice(["{", "\x7f", '{"type":'] * 3) + str(rng.random()))
            assert next_of(connection, "error")["fatal"] is False
        connection.send("the last straw")
        assert next_of(connection, "error")["fatal"] is True
        with pytest.raises(ClosedError) as caught:
            connection.receive()
        assert caught.value.code == 1008


@pytest.mark.parametrize("opcode", [PING, PONG, BINARY])
@pytest.mark.parametrize("port", ["stream", "http"])
def test_a_client_that_says_nothing_too_often_is_closed(
    server: LocalServer, port: str, opcode: int
) -> None:
    """It is told so at either port, and counted; somebody else hears nothing of it."""
    before = front_load(server).errors.get("chatter", 0)
    with begun(server) as other:
        url = server.url if port == "stream" else f"ws{server.http_url[4:]}/ws"
        with RawWebSocket(url) as connection:
            connection.send('{"type": "session.start", "idle": false}')
            next_of(connection, "session.started")
            connection.socket.sendall(RawWebSocket.frame(opcode, b"") * 5000)
            with pytest.raises(ClosedError) as caught:
                next_of(connection, "none of this kind")
            assert caught.value.code == 1008
        wait_for(server, lambda load: load.errors.get("chatter", 0) > before, "it is counted")
        other.send('{"type": "ping", "id": 7}')
        assert next_of(other, "pong")["id"] == 7


# ---------------------------------------------------------------- sound
@in_trio
async def test_an_odd_number_of_bytes_is_completed_by_the_next_piece(server: LocalServer) -> None:
    pcm = speech(0.4).tobytes()
    async with lipsync_fast.connect(server.url, pace="burst") as session:
        await session.send(pcm[:3001])
        await session.send(b"")
        await session.send(pcm[3001:3002])
        await session.send(pcm[3002:])
        await session.end_utterance()
        ended, _ = await utterance(session, 1)
        assert ended.frames == 10
        await session.send(b"\1")  # half a sample is none
        await session.end_utterance()
        await say(session, speech(0.2))
        async for event in session:
            if getattr(event, "frames", None) == 5:
                break


@in_trio
async def test_a_sound_of_nothing_but_nan(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, pace="burst", format="f32le") as session:
        await session.send(np.full(3200, np.nan, "<f4").tobytes())
        await session.send(np.array([3e38, -3e38] * 800, "<f4").tobytes())
        await session.end_utterance()
        ended, events = await utterance(session, 1)
        assert_whole(ended, spoken(events), 8)


def test_sound_before_the_session(server: LocalServer) -> None:
    offer = ("Sec-WebSocket-Protocol: x",)  # none of ours: judged by its first message
    with RawWebSocket(server.url, headers=offer) as connection:
        connection.send('{"type": "session.start", "audio": {"sample_rate": 4}}')
        assert next_of(connection, "error")["code"] == "unsupported_audio"
        connection.send(bytes(640))
        assert next_of(connection, "error")["code"] == "bad_request"
        connection.send(START)
        next_of(connection, "session.started")


# ---------------------------------------------------------------- coming and going
def test_clients_that_vanish_while_they_speak(server: LocalServer) -> None:
    for _ in range(20):
        connection = begun(server, '{"type": "session.start"}')
        connection.send(speech(2.0).tobytes())
        connection.receive()
        connection.reset()
    load = wait_for(server, lambda load: load.connections == 0, "all have gone")
    assert load.speaking == 0


def test_half_a_frame_and_then_silence(server: LocalServer) -> None:
    """It holds no more than itself: others are served meanwhile, and it ends when it goes."""
    with begun(server) as connection:
        frame = connection.frame(BINARY, bytes(100_000))
        connection.socket.sendall(frame[:50_000])
        with begun(server) as other:
            other.send('{"type": "ping", "id": "here"}')
            assert next_of(other, "pong")["id"] == "here"
        connection.socket.sendall(frame[50_000:])
        connection.send('{"type": "ping", "id": "there"}')
        assert next_of(connection, "pong")["id"] == "there"
        connection.socket.sendall(frame[:70_000])


def test_many_connects_and_disconnects(server: LocalServer) -> None:
    address = urlsplit(server.url)
    before = descriptors(server)
    for _ in range(500):
        socket.create_connection((address.hostname, address.port), 30).close()
    for k in range(100):
        connection = RawWebSocket(server.url)
        if k % 3 == 0:
            connection.send(START)
        if k % 2:
            connection.reset()
        else:
            connection.socket.close()
    wait_for(server, lambda load: load.connections == 0, "all have gone")
    wait_until_closed(server, before)


@pytest.mark.parametrize("where", ["stream", "http"])
def test_a_handshake_that_trickles_is_cut_off(server: LocalServer, where: str) -> None:
    address = urlsplit(server.url if where == "stream" else server.http_url)
    before = descriptors(server)
    held = [socket.create_connection((address.hostname, address.port), 60) for _ in range(20)]
    try:
        for connection in held:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        if where == "stream":
            for connection in held:
                while connection.recv(4096):
                    pass
        with begun(server) as other:  # they cost others nothing
            other.send('{"type": "ping"}')
            next_of(other, "pong")
    finally:
        for connection in held:
            connection.close()
    wait_until_closed(server, before)


@pytest.mark.parametrize("where", ["stream", "http"])
def test_a_connection_that_says_nothing_at_all_is_closed(server: LocalServer, where: str) -> None:
    address = urlsplit(server.url if where == "stream" else server.http_url)
    begun_at = time.monotonic()
    with socket.create_connection((address.hostname, address.port), 60) as connection:
        while connection.recv(4096):
            pass
    assert time.monotonic() - begun_at > HANDSHAKE_S - 0.1


@in_trio
async def test_a_reader_of_a_kilobyte_a_second_costs_others_nothing(server: LocalServer) -> None:
    with begun(server, '{"type": "session.start"}') as slow:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with lipsync_fast.connect(server.url) as session:
            for number in (1, 2, 3):
                slow.socket.recv(1024)
                await say(session, speech(0.6))
                ended, events = await utterance(session, number)
                assert_whole(ended, spoken(events), 15)
                sequences = [e.sequence for e in spoken(events)]
                assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))


@in_trio
async def test_too_many_connections_of_one_address(small: LocalServer) -> None:
    sessions = [begun(small) for _ in range(3)]
    try:
        with pytest.raises(SessionError) as caught:
            async with lipsync_fast.connect(small.url):
                pass
        assert caught.value.code == "overloaded"
        assert caught.value.retry_after_s is not None
        await trio.to_thread.run_sync(
            wait_for, small, lambda load: load.refused.get("connection"), "it is counted"
        )
    finally:
        for connection in sessions:
            connection.socket.close()
    await trio.to_thread.run_sync(
        wait_for, small, lambda load: load.connections == 0, "they have gone"
    )
    async with lipsync_fast.connect(small.url) as session:
        assert session.started.avatar == "demo"


def test_who_reads_nothing_at_all_is_not_kept(impatient: LocalServer) -> None:
    before = front_load(impatient).skipped
    connection = RawWebSocket(impatient.url)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.send('{"type": "session.start"}')
    wait_for(impatient, lambda load: load.skipped > before, "it reads too slowly")
    wait_for(impatient, lambda load: load.connections == 0, "it is given up")
    connection.socket.close()


def test_nobody_is_heard_for_too_long(impatient: LocalServer) -> None:
    with begun(impatient) as connection:
        with pytest.raises(ClosedError) as caught:
            next_of(connection, "error")
        assert caught.value.code == 1008


def test_a_speaker_that_sends_nothing_more_gives_up_its_place(small: LocalServer) -> None:
    """Two bytes, and then nothing but pings, which prove that it could say something."""
    with begun(small) as holder, begun(small) as other:
        holder.send(bytes(2))
        wait_for(small, lambda load: load.speaking == 1, "it has the place")
        other.send(bytes(32_000))
        assert next_of(other, "session.overloaded")["retry_after_ms"]
        other.send('{"type": "utterance.end"}')
        for number in range(1000):
            holder.send(f'{{"type": "ping", "id": {number}}}')
            while (heard := _next_text(holder))["type"] != "pong":
                if heard["type"] == "utterance.ended":
                    break
            if heard["type"] == "utterance.ended":
                break
            time.sleep(0.05)
        assert (heard["reason"], heard["frames"], heard["left_out"]) == ("quiet", 1, 0)
        wait_for(small, lambda load: load.speaking == 0, "the place is free")
        other.send(bytes(32_000))
        next_of(other, "utterance.started")
        other.send('{"type": "utterance.end"}')
        assert next_of(other, "utterance.ended")["reason"] == "end"
        holder.send(bytes(1280))
        holder.send('{"type": "utterance.end"}')
        ended = next_of(holder, "utterance.ended")
        assert (ended["utterance"], ended["frames"], ended["reason"]) == (2, 1, "end")


def test_pings_alone_do_not_put_off_the_beginning(impatient: LocalServer) -> None:
    """Neither ours nor the library's: a session begins, or the connection ends."""
    begun_at = time.monotonic()
    offered = [Subprotocol("lipsync.v1")]
    with sync_client.connect(impatient.url, subprotocols=offered) as connection:

        def ping_on() -> None:
            while True:
                connection.send('{"type": "ping", "id": 1}')
                assert json.loads(connection.recv())["type"] == "pong"
                connection.ping()
                time.sleep(0.1)

        with pytest.raises(ConnectionClosed) as caught:
            ping_on()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1008
    assert f"no session.start came within {IDLE_S:g} s" in caught.value.rcvd.reason
    assert time.monotonic() - begun_at > IDLE_S - 0.1


def test_pongs_are_no_sign_of_life(impatient: LocalServer) -> None:
    """Libraries answer pings for programs that have forgotten the connection."""
    start = '{"type": "session.start", "idle": false}'
    with begun(impatient, start) as connection:
        connection.socket.settimeout(0.1)

        def pong_on() -> None:
            for _ in range(600):
                connection.send_frame(PONG, b"")
                with contextlib.suppress(TimeoutError):
                    connection.receive()

        with pytest.raises((ClosedError, ConnectionError)) as caught:
            pong_on()
    assert not isinstance(caught.value, ClosedError) or caught.value.code == 1008


@in_trio
async def test_who_only_listens_may_stay(impatient: LocalServer) -> None:
    """It takes the pictures of somebody who rests; it has nothing to say."""
    async with lipsync_fast.connect(impatient.url) as session:
        with trio.move_on_after(5 * IDLE_S) as waited:
            async for _ in session:
                pass
        assert waited.cancelled_caught, "it was sent away"
        await session.interrupt()


@in_trio
async def test_who_waits_for_frames_may_stay(impatient: LocalServer) -> None:
    """Its engine does nothing for a while: what is owed to a client is no silence of its own."""
    engine = impatient.status().engines[0].pid
    async with lipsync_fast.connect(impatient.url, pace="burst") as session:
        os.kill(engine, signal.SIGSTOP)
        try:
            await say(session, speech(0.4))
            await trio.sleep(4 * IDLE_S)
        finally:
            os.kill(engine, signal.SIGCONT)
        ended, events = await utterance(session, 1)
        assert_whole(ended, spoken(events), 10)
        assert ended.dropped == 0


def _next_text(connection: RawWebSocket) -> dict[str, Any]:
    while True:
        message = connection.receive()
        if isinstance(message, str):
            found: dict[str, Any] = json.loads(message)
            return found
