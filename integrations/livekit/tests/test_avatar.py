# SPDX-License-Identifier: Apache-2.0
"""The face in LiveKit's own avatar runner, with stand-in rooms and native tracks.

No LiveKit server is run: what would go over the network is carried from one room to the other here.
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    DataStreamAudioOutput,
    DataStreamAudioReceiver,
)
from livekit.plugins.lipsync_fast import AvatarSession, LipsyncFastGenerator, generator
from rooms import Agent, pair, piece
from scripted import STARTED, say, scripted
from speaking_server import PIECE, RATE, messages, show, speaking
from websockets.sync.server import ServerConnection

from lipsync_fast_client.protocol import SessionInterrupted


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipsync_fast_client import outage

    monkeypatch.setattr(outage, "FIRST_S", 0.02)
    monkeypatch.setattr(outage, "LONGEST_S", 0.1)


class Heard:
    """What came out of a generator."""

    def __init__(self) -> None:
        self.sound = b""
        self.pictures: list[tuple[int, int, int]] = []
        self.ends: list[int] = []
        self.face: list[str | None] = []

    async def listen(self, made: LipsyncFastGenerator) -> None:
        async for item in made:
            if isinstance(item, rtc.VideoFrame):
                self.pictures.append((item.width, item.height, item.type))
            elif isinstance(item, rtc.AudioFrame):
                self.sound += bytes(item.data)
            else:
                self.ends.append(len(self.sound))

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not what():
                await asyncio.sleep(0.01)


def with_generator(
    url: str, talk: Callable[[LipsyncFastGenerator, Heard], Coroutine[Any, Any, None]]
) -> Heard:
    heard = Heard()

    async def run() -> None:
        made = LipsyncFastGenerator(url, sample_rate=RATE, max_width=640, on_face=heard.face.append)
        await made.start()
        listening = asyncio.create_task(heard.listen(made))
        try:
            await talk(made, heard)
        finally:
            listening.cancel()
            await made.aclose()

    asyncio.run(run())
    return heard


async def segment(made: LipsyncFastGenerator, number: int, pieces: int = 3) -> None:
    for _ in range(pieces):
        await made.push_audio(piece(number))
    await made.push_audio(AudioSegmentEnd())


def whole(*numbers: int, pieces: int = 3) -> bytes:
    return b"".join(n.to_bytes(2, "little") * (PIECE // 2 * pieces) for n in numbers)


def test_segments_come_back_with_pictures() -> None:
    async def talk(made: LipsyncFastGenerator, heard: Heard) -> None:
        await segment(made, 1)
        await segment(made, 2)
        await heard.until(lambda: len(heard.ends) == 2)

    with scripted(speaking) as server:
        heard = with_generator(server.url, talk)
    assert heard.sound == whole(1, 2)
    assert heard.ends == [3 * PIECE, 6 * PIECE]
    assert heard.pictures
    assert set(heard.pictures) == {(8, 6, rtc.VideoBufferType.RGB24)}
    assert heard.face == []
    assert server.heard[0]["video"]["max_width"] == 640


def test_without_a_server_there_is_the_sound() -> None:
    async def talk(made: LipsyncFastGenerator, heard: Heard) -> None:
        await segment(made, 1)
        await segment(made, 2)
        await heard.until(lambda: len(heard.ends) == 2)

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        heard = with_generator(f"ws://127.0.0.1:{held.getsockname()[1]}", talk)
    assert (heard.sound, heard.ends) == (whole(1, 2), [3 * PIECE, 6 * PIECE])
    assert len(heard.face) == 1
    assert heard.face[0]
    assert heard.face[0].startswith("ws://127.0.0.1:")


@pytest.mark.parametrize("fault", ["vanish", "overloaded"])
def test_a_server_that_fails_loses_no_sound_and_the_face_comes_back(fault: str) -> None:
    sessions = itertools.count(1)

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        first = next(sessions) == 1
        speaking(connection, heard, lambda *at: fault if first and at == (1, 2) else None)

    async def talk(made: LipsyncFastGenerator, heard: Heard) -> None:
        await segment(made, 1)
        await heard.until(lambda: len(heard.ends) == 1)
        if fault == "vanish":
            await heard.until(lambda: heard.face[-1:] == [None])
        heard.pictures.clear()
        await segment(made, 2)
        await heard.until(lambda: len(heard.ends) == 2 and len(heard.pictures) == 3)
        await heard.until(lambda: heard.face[-1:] == [None])

    with scripted(script) as server:
        heard = with_generator(server.url, talk)
    assert (heard.sound, heard.ends) == (whole(1, 2), [3 * PIECE, 6 * PIECE])
    assert len(heard.face) == 2


def test_a_server_that_does_not_go_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "STUCK_S", 0.2)

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        for message in messages(connection, heard):
            if message == "session.interrupt":
                show(connection, 1, b"\7\7" * (PIECE // 2))
                say(connection, SessionInterrupted(last_frame=1))

    async def talk(made: LipsyncFastGenerator, heard: Heard) -> None:
        await segment(made, 1)
        await heard.until(lambda: len(heard.ends) == 1)

    with scripted(script) as server:
        heard = with_generator(server.url, talk)
    assert heard.sound == whole(1)
    assert heard.face == ["the server does not go on"]


def test_sound_of_another_form() -> None:
    async def talk(made: LipsyncFastGenerator, heard: Heard) -> None:
        for _ in range(50):
            await made.push_audio(piece(1, rate=48_000, channels=2))
        await made.push_audio(AudioSegmentEnd())
        await heard.until(lambda: len(heard.ends) == 1)

    with scripted(speaking) as server:
        heard = with_generator(server.url, talk)
    assert len(heard.sound) / 2 / RATE == pytest.approx(50 * PIECE / 4 / 48_000, abs=0.05)


# ---------------------------------------------------------------- both halves of the wire
def test_both_halves_of_the_wire() -> None:
    """A whole segment, and a barge-in: acknowledged, and its position is that of what was heard."""

    async def run() -> tuple[Any, Any, float, list[tuple[str, str]], int]:
        agent, worker = pair()
        made = LipsyncFastGenerator(server.url, sample_rate=RATE)
        width, height = await made.start() or (0, 0)
        assert (width, height) == (STARTED.width, STARTED.height)
        runner = AvatarRunner(
            worker,  # type: ignore[arg-type]
            audio_recv=DataStreamAudioReceiver(worker, frame_size_ms=20),  # type: ignore[arg-type]
            video_gen=made,
            options=AvatarOptions(width, height, 25, RATE, 1),
        )
        await runner.start()
        out = DataStreamAudioOutput(
            agent,  # type: ignore[arg-type]
            destination_identity="avatar",
            sample_rate=RATE,
            wait_playback_start=True,
        )
        async with asyncio.timeout(60):
            for _ in range(25):
                await out.capture_frame(piece(1))
            out.flush()
            first = await out.wait_for_playout()
            for _ in range(75):
                await out.capture_frame(piece(2))
            out.flush()
            await asyncio.sleep(1.0)
            begun = asyncio.get_running_loop().time()
            out.clear_buffer()
            second = await out.wait_for_playout()
            took = asyncio.get_running_loop().time() - begun
            for _ in range(10):
                await out.capture_frame(piece(3))
            out.flush()
            third = await out.wait_for_playout()
        assert third.playback_position == pytest.approx(0.4)
        await runner.aclose()
        await made.aclose()
        return first, second, took, agent.log, len(worker.local_participant.tracks)

    with scripted(speaking) as server:
        first, second, took, log, tracks = asyncio.run(run())
    assert (first.playback_position, first.interrupted) == (pytest.approx(1.0), False)
    assert second.interrupted
    assert 0 < second.playback_position < 3
    assert (second.playback_position / 0.02) % 1 == pytest.approx(0, abs=1e-6)
    assert took < 2, "the sender gives up after two seconds"
    assert tracks == 2
    kinds = [method for method, _ in log]
    assert kinds == [
        "lk.playback_started", "lk.playback_finished",
        "lk.playback_started", "lk.clear_buffer", "lk.playback_finished",
        "lk.playback_started", "lk.playback_finished",
    ]  # fmt: skip
    assert json.loads(log[1][1])["interrupted"] is False


def test_an_agent_has_a_face_and_keeps_its_voice_without() -> None:
    async def run(url: str) -> tuple[Any, list[str], int]:
        room, _ = pair()
        agent, events = Agent(), []
        avatar = AvatarSession(url=url, avatar="ann", sample_rate=RATE)
        avatar.on("face_lost", lambda reason: events.append(f"lost: {reason}"))
        avatar.on("face_found", lambda: events.append("found"))
        await avatar.start(agent, room)  # type: ignore[arg-type]
        assert (avatar.avatar_identity, avatar.provider) == ("agent", "lipsync-fast")
        for _ in range(10):
            await agent.output.tail.capture_frame(piece(1))
        agent.output.tail.flush()
        async with asyncio.timeout(30):
            played = await agent.output.tail.wait_for_playout()
        await avatar.aclose()
        await avatar.aclose()
        return played, events, len(room.local_participant.tracks)

    with scripted(speaking) as server:
        played, events, tracks = asyncio.run(run(server.url))
        assert server.ended.wait(20)
    assert (played.playback_position, tracks, events) == (pytest.approx(0.4), 2, [])
    assert server.heard[0]["avatar"] == "ann"
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        played, events, _ = asyncio.run(run(f"ws://127.0.0.1:{held.getsockname()[1]}"))
    assert played.playback_position == pytest.approx(0.4)
    assert len(events) == 1
    assert events[0].startswith("lost: ws://127.0.0.1:")


def test_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIPSYNC_FAST_URL", raising=False)

    async def make(**named: Any) -> None:
        AvatarSession(**named)

    with pytest.raises(ValueError, match="url '': expected ws://"):
        asyncio.run(make())
    with pytest.raises(ValueError, match="quality 0"):
        asyncio.run(make(url="ws://127.0.0.1:1", quality=0))


def test_the_example_is_short_and_imports_what_is_there() -> None:
    text = (Path(__file__).parents[1] / "examples" / "agent.py").read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 30
    modules = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
    assert modules
    for name in modules:
        assert find_spec(name or "") is not None, name
