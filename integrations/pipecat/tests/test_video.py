# SPDX-License-Identifier: Apache-2.0
"""The video service in Pipecat's pipelines, against a scripted server on a real socket."""

from __future__ import annotations

import ast
import asyncio
import itertools
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection
from pipecat.tests.utils import SleepFrame, run_test
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner
from pipecat_lipsync_fast import LipsyncFastVideoService, video
from scripted import STARTED, say, scripted
from speaking_server import PIECE, RATE, messages, show, speaking
from websockets.sync.server import ServerConnection

from lipsync_fast_client.protocol import (
    SessionInterrupted,
)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipsync_fast_client import outage

    monkeypatch.setattr(outage, "FIRST_S", 0.02)
    monkeypatch.setattr(outage, "LONGEST_S", 0.1)


def sound(number: int, pieces: int = 3, **changed: Any) -> list[Frame]:
    """An utterance as a speech synthesis gives it; its samples are its number."""
    data = number.to_bytes(2, "little") * (PIECE // 2)
    named = {"sample_rate": RATE, "num_channels": 1} | changed
    made: list[Frame] = [TTSAudioRawFrame(audio=data, **named) for _ in range(pieces)]
    return [TTSStartedFrame(), *made, TTSStoppedFrame()]


def pcm(frames: Any) -> bytes:
    return b"".join(f.audio for f in frames if isinstance(f, TTSAudioRawFrame))


def whole(*numbers: int, pieces: int = 3) -> bytes:
    return b"".join(n.to_bytes(2, "little") * (PIECE // 2 * pieces) for n in numbers)


def pictures(frames: Any) -> list[OutputImageRawFrame]:
    return [f for f in frames if isinstance(f, OutputImageRawFrame)]


def errors(frames: Any) -> list[str]:
    return [f.error for f in frames if isinstance(f, ErrorFrame)]


def talk(url: str, *frames: Frame, **named: Any) -> tuple[list[Frame], list[Frame]]:
    """What comes out of the service, down and up."""
    named = {"audio_out_sample_rate": RATE} | named

    async def run() -> Any:
        service = LipsyncFastVideoService(url=url, avatar="ann", max_width=640)
        async with asyncio.timeout(60):
            return await run_test(
                service,
                frames_to_send=frames,
                pipeline_params=PipelineParams(**named),
                start_timeout=30,
            )

    down, up = asyncio.run(run())
    return list(down), list(up)


def test_speech_comes_back_with_pictures_and_its_end_behind_it() -> None:
    with scripted(speaking) as server:
        down, up = talk(server.url, *sound(1), *sound(2))
    assert server.heard[0]["avatar"] == "ann"
    assert server.heard[0]["video"]["max_width"] == 640
    assert server.heard[0]["audio"]["sample_rate"] == RATE
    assert pcm(down) == whole(1, 2)
    shown = pictures(down)
    assert len(shown) == 6
    assert {(p.size, p.format, p.sync_with_audio, len(p.image)) for p in shown} == {
        ((8, 6), "RGB", True, 8 * 6 * 3)
    }
    kinds = [type(f) for f in down if isinstance(f, (TTSAudioRawFrame, TTSStoppedFrame))]
    assert kinds == 2 * [*3 * [TTSAudioRawFrame], TTSStoppedFrame]
    assert errors(up) == []
    assert server.heard[-1] == "session.stop"


def test_nothing_of_the_old_words_comes_behind_an_interruption() -> None:
    def hold_back(utterance: int, piece: int) -> str | None:
        return "swallow" if utterance == 1 else None

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        speaking(connection, heard, hold_back)

    started = [f for f in sound(1) if not isinstance(f, TTSStoppedFrame)]
    with scripted(script) as server:
        down, up = talk(server.url, *started, SleepFrame(0.3), InterruptionFrame(), *sound(2))
    (at,) = [n for n, f in enumerate(down) if isinstance(f, InterruptionFrame)]
    assert pcm(down[:at]) == b""
    assert pcm(down[at:]) == whole(2)
    assert errors(up) == []
    assert "session.interrupt" in server.heard


def test_without_a_server_there_is_the_sound() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused
        down, up = talk(f"ws://127.0.0.1:{held.getsockname()[1]}", *sound(1), *sound(2))
    assert pcm(down) == whole(1, 2)
    assert pictures(down) == []
    assert [type(f) for f in down[:5]] == [type(f) for f in sound(1)]
    (words,) = errors(up)
    assert words.startswith("no face: ws://127.0.0.1:"), "told once"


@pytest.mark.parametrize("where", [1, 2, 3])
def test_a_lost_server_loses_no_sound_and_the_face_comes_back(where: int) -> None:
    sessions = itertools.count(1)

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        first = next(sessions) == 1
        speaking(connection, heard, lambda _, piece: "vanish" if first and piece == where else None)

    with scripted(script) as server:
        down, up = talk(
            server.url, *sound(1), SleepFrame(0.5), *sound(2), SleepFrame(1.5), *sound(3)
        )
    assert pcm(down) == whole(1, 2, 3)
    assert len(pictures(down)) >= where - 1 + 3, "the last utterance has its face again"
    stops = [n for n, f in enumerate(down) if isinstance(f, TTSStoppedFrame)]
    assert [pcm(down[:n]) for n in stops] == [whole(1), whole(1, 2), whole(1, 2, 3)]
    assert errors(up) == ["no face: the connection was lost"]


@pytest.mark.parametrize("where", [1, 2])
def test_an_overloaded_server_is_asked_again_for_the_next_words(where: int) -> None:
    def script(connection: ServerConnection, heard: list[Any]) -> None:
        refused = (1, where)
        speaking(connection, heard, lambda *at: "overloaded" if at == refused else None)

    with scripted(script) as server:
        down, up = talk(server.url, *sound(1), SleepFrame(0.5), *sound(2))
    assert pcm(down) == whole(1, 2)
    assert len(pictures(down)) == where - 1 + 3
    assert errors(up) == ["the server has too much to do: this is said without a face"]
    assert "session.stop" in server.heard


def test_a_server_that_does_not_go_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "STUCK_S", 0.3)

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        for message in messages(connection, heard):
            if message == "session.interrupt":
                show(connection, 1, b"\7\7" * (PIECE // 2))
                say(connection, SessionInterrupted(last_frame=1))

    with scripted(script) as server:
        down, up = talk(server.url, *sound(1))
    assert pcm(down) == whole(1)
    assert isinstance(down[-1], TTSStoppedFrame)
    assert errors(up) == ["no face: the server does not go on"]


def test_an_utterance_without_any_picture_is_heard() -> None:
    """Its engine was lost, and no other one was there in time."""

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        speaking(connection, heard, lambda utterance, _: "swallow" if utterance == 1 else None)

    with scripted(script) as server:
        down, up = talk(server.url, *sound(1), *sound(2))
    assert pcm(down) == whole(1, 2)
    assert len(pictures(down)) == 3
    assert errors(up) == []


def test_sound_of_another_form_is_brought_into_that_of_the_output() -> None:
    stereo = sound(1, pieces=25, sample_rate=48_000, num_channels=2)
    with scripted(speaking) as server:
        down, _ = talk(server.url, *stereo)
    seconds = 25 * PIECE / 4 / 48_000
    assert len(pcm(down)) / 2 / RATE == pytest.approx(seconds, abs=0.05)
    assert {(f.sample_rate, f.num_channels) for f in down if isinstance(f, TTSAudioRawFrame)} == {
        (RATE, 1)
    }


def test_arguments_are_named() -> None:
    for named, words in (
        ({"url": "http://127.0.0.1"}, "url 'http://127.0.0.1': expected ws://"),
        ({"url": "ws://127.0.0.1", "quality": 0}, "quality 0"),
    ):
        with pytest.raises(ValueError, match=words):
            LipsyncFastVideoService(**named)


class Recorder(BaseOutputTransport):
    """A transport that notes what it is to send, as slowly as it would be heard."""

    def __init__(self, params: TransportParams) -> None:
        super().__init__(params)
        self.sound = bytearray()
        self.sizes: set[Any] = set()
        self.events: list[str] = []

    async def start(self, frame: Any) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: Any) -> bool:
        self.sound += frame.audio
        await asyncio.sleep(len(frame.audio) / 2 / RATE)
        return True

    async def write_video_frame(self, frame: OutputImageRawFrame) -> bool:
        self.sizes.add(frame.size)
        return True

    async def push_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        kinds = (BotStartedSpeakingFrame, BotStoppedSpeakingFrame, InterruptionFrame)
        if isinstance(frame, kinds) and direction == FrameDirection.DOWNSTREAM:
            self.events.append(type(frame).__name__)
        await super().push_frame(frame, direction)


def test_a_pipeline_with_a_transport() -> None:
    """Barge-in stops the bot once, and it does not start again by what was on its way."""

    async def run() -> Recorder:
        recorder = Recorder(
            TransportParams(
                audio_out_enabled=True,
                video_out_enabled=True,
                video_out_width=8,
                video_out_height=6,
                video_out_framerate=25,
            )
        )
        service = LipsyncFastVideoService(url=server.url)
        worker = PipelineWorker(
            Pipeline([service, recorder]),
            params=PipelineParams(audio_out_sample_rate=RATE),
            cancel_on_idle_timeout=False,
        )
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)

        async def feed() -> None:
            await worker.queue_frames(sound(1, pieces=100)[:-1])
            while b"\1\0" not in recorder.sound:
                await asyncio.sleep(0.02)
            await worker.queue_frame(InterruptionFrame())
            while "InterruptionFrame" not in recorder.events:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            await worker.queue_frames(sound(2, pieces=10))
            await worker.queue_frame(EndFrame())

        async with asyncio.timeout(60):
            await asyncio.gather(runner.run(), feed())
        return recorder

    with scripted(speaking) as server:
        recorder = asyncio.run(run())
    assert recorder.sizes == {(8, 6)}
    assert b"\7\7\7\7" not in recorder.sound
    assert recorder.sound.count(b"\2\0") >= 10 * PIECE // 2 - 1
    spoken = [e for e in recorder.events if "Bot" in e]
    assert spoken == 2 * ["BotStartedSpeakingFrame", "BotStoppedSpeakingFrame"]


def test_the_example_is_short_and_imports_what_is_there() -> None:
    text = (Path(__file__).parents[1] / "examples" / "agent.py").read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 30
    wanted = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
    assert len(wanted) > 8
    for name in wanted:
        assert find_spec(name or "") is not None, name
