# SPDX-License-Identifier: Apache-2.0
"""Utterances that were said before, or pre-rendered: real server, socket and command line."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import trio
from numpy.typing import NDArray
from talking import BUSY_MACHINE, in_trio, say, speech, spoken, until, utterance
from typer.testing import CliRunner
from variants import put

import lipsync_fast
from lipsync_fast.cli.main import app
from lipsync_fast.cli.status import ControlClient
from lipsync_fast.client import AudioFrame, ErrorMessage, SessionInterrupted, VideoFrame
from lipsync_fast.client.local import LocalServer
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.utterances.store import Store

pytestmark = pytest.mark.clock

GREETING = speech(0.9)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("known")


@pytest.fixture(scope="module")
def environ(folder: Path) -> dict[str, str]:
    """For commands and servers: avatars and what is kept lie in the folder."""
    return {
        **os.environ,
        "LIPSYNC_FAST_UTTERANCES_DISK_MB": "64",
        "LIPSYNC_FAST_UTTERANCES_FOLDER": str(folder / "kept"),
        "LIPSYNC_FAST_AVATARS": str(folder),
    }


@pytest.fixture(scope="module")
def server(tiny_avatar: Path, folder: Path, environ: dict[str, str]) -> Iterator[LocalServer]:
    put(tiny_avatar, folder / "base.lsa")
    put(tiny_avatar, folder / "guest.lsa")
    config = {
        "live": {"speakers": 4},
        "avatars": {"default": "base"},
        "engines": {"gpus": "none", "spares": 1, **BUSY_MACHINE},
    }
    before = dict(os.environ)
    os.environ.update(environ)
    try:
        with LocalServer(config) as made:
            yield made
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def sound(folder: Path) -> Path:
    return written(folder / "greeting.wav", GREETING)


@pytest.fixture(scope="module")
def greeting(server: LocalServer, environ: dict[str, str], sound: Path) -> str:
    """Pre-rendered beside the server; what the command said."""
    return prerender(environ, sound, "greeting")


def written(path: Path, pcm: NDArray[np.int16], rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return path


def command(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "lipsync_fast", "avatar", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def prerender(environ: dict[str, str], sound: Path, name: str, *more: str) -> str:
    done = command(environ, "prerender", "base", str(sound), "--as", name, *more)
    assert done.returncode == 0, done.stderr
    return done.stderr


def inferences(status: ServerStatus) -> int:
    return sum(e.load.inferences for e in status.engines)


def kept(status: ServerStatus) -> int:
    return sum(e.load.store.get("kept", 0) for e in status.engines)


def when(server: LocalServer, found: Callable[[ServerStatus], bool]) -> ServerStatus:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        status = server.status()
        if found(status):
            return status
        time.sleep(0.05)
    raise AssertionError(f"waited in vain: {status.engines}\n{server.log()[-2000:]}")


def settled(server: LocalServer) -> ServerStatus:
    """Once what was said has been counted: heartbeats come four times a second."""
    before = server.status()
    while True:
        time.sleep(0.6)
        now = server.status()
        if (inferences(now), kept(now)) == (inferences(before), kept(before)):
            return now
        before = now


async def burst(server: LocalServer, pcm: NDArray[np.int16], **more: Any) -> list[bytes]:
    async with lipsync_fast.connect(server.url, pace="burst", **more) as session:
        await say(session, pcm)
        ended, before = await utterance(session, 1)
        assert ended.dropped == 0
        return [f.jpeg for f in spoken(before)]


@in_trio
async def test_the_second_time_no_network_runs_and_the_bytes_are_the_same(
    server: LocalServer, tiny_avatar: Path
) -> None:
    pcm = speech(1.2, 2.0)
    first = await burst(server, pcm)
    status = when(server, lambda s: kept(s) >= 30)
    again = await burst(server, pcm)
    assert again == first
    after = settled(server)
    assert inferences(after) == inferences(status)
    assert sum(e.load.store.get("found", 0) for e in after.engines) >= 30
    with lipsync_fast.open(tiny_avatar, backend="cpu") as avatar:
        assert [f.jpeg for f in avatar.render(pcm, 16_000)] == again
    other = await burst(server, pcm, quality=40)
    assert len(other) == 30
    assert inferences(settled(server)) == inferences(status) + 30, "another look is made"


@in_trio
async def test_pre_rendered_it_is_said_by_name_without_a_network(
    server: LocalServer, environ: dict[str, str], sound: Path, greeting: str
) -> None:
    assert "frames over" in greeting
    assert "made now" in greeting
    assert ", 0 of them made now" in prerender(environ, sound, "greeting"), "all is there"
    listed = command(environ, "prerendered", "base", "--json")
    (named,) = json.loads(listed.stdout)
    assert (named["name"], named["whole"], named["seconds"]) == ("greeting", True, 0.9)
    before = inferences(settled(server))
    async with lipsync_fast.connect(server.url, echo_audio=True) as session:
        for number in (1, 2):
            with trio.move_on_after(0.31 * number):
                async for _ in session:
                    pass
            await session.say("greeting")
            ended, events = await utterance(session, number)
            frames = spoken(events, number)
            assert (ended.frames, ended.dropped) == (23, 0)
            assert [f.repeated for f in frames] == 23 * [False]
            echo = b"".join(e.pcm for e in events if isinstance(e, AudioFrame))
            assert echo == GREETING.tobytes()
            idle = [e for e in events if isinstance(e, VideoFrame) and not e.utterance]
            assert all(a.pts_us < b.pts_us for a, b in itertools.pairwise(idle))
        with trio.move_on_after(0.5):
            async for _ in session:
                pass
    status = settled(server)
    assert inferences(status) == before
    (front,) = status.fronts
    assert front.load.utterances["named"] == front.load.utterances["at_once"] == 2
    assert front.load.late == 0


@in_trio
async def test_a_name_that_is_not_there_is_an_error_and_the_session_goes_on(
    server: LocalServer, greeting: str
) -> None:
    async with lipsync_fast.connect(server.url, sample_rate=24_000, echo_audio=True) as session:
        await session.say("farewell")
        error, _ = await until(session, ErrorMessage)
        assert (error.code, error.fatal) == ("unknown_utterance", False)
        assert "'farewell'" in error.message
        await session.send(speech(0.2))
        await session.say("greeting")
        error, _ = await until(session, ErrorMessage)
        assert error.code == "bad_request"
        assert "open" in error.message
        await session.end_utterance()
        await session.say("greeting")
        ended, events = await utterance(session, 2)
        assert ended.frames == 23
        echo = b"".join(e.pcm for e in events if isinstance(e, AudioFrame) and e.utterance == 2)
        assert abs(len(echo) / 2 - 0.9 * 24_000) <= 24, "at the client's rate"


@in_trio
async def test_interrupted_in_its_middle(server: LocalServer, greeting: str) -> None:
    async with lipsync_fast.connect(server.url) as session:
        await session.say("greeting")
        await until(session, VideoFrame, lambda f: f.utterance == 1)
        await session.interrupt()
        _, _ = await until(session, SessionInterrupted)
        await session.say("greeting")
        ended, events = await utterance(session, 2)
        assert (ended.frames, ended.dropped) == (23, 0)
        assert not spoken(events, 1), "nothing of the first one comes behind the interruption"


@in_trio
async def test_what_begins_the_same_and_goes_on_otherwise(
    server: LocalServer, greeting: str, tiny_avatar: Path
) -> None:
    other = GREETING.copy()
    other[9_000:] = speech(0.9, 3.0)[9_000:]
    with lipsync_fast.open(tiny_avatar, backend="cpu") as avatar:
        wanted = [f.jpeg for f in avatar.render(other, 16_000)]
    assert await burst(server, other) == wanted


@in_trio
async def test_an_engine_lost_in_its_middle(server: LocalServer, greeting: str) -> None:
    status = when(server, lambda s: sum(e.state == "spare" for e in s.engines) == 1)
    (pid,) = (e.pid for e in status.engines if e.state == "ready")
    async with lipsync_fast.connect(server.url) as session:
        await session.say("greeting")
        await until(session, VideoFrame, lambda f: f.utterance == 1 and not f.repeated)
        os.kill(pid, signal.SIGKILL)
        ended, events = await utterance(session, 1)
        assert ended.frames == 23
        shown = [f for f in spoken(events, 1) if not f.repeated]
        assert len(shown) == 22 - ended.dropped, "each once, or owned up to"
        assert all(a.pts_us < b.pts_us for a, b in itertools.pairwise(shown))
    when(server, lambda s: sum(e.state == "spare" for e in s.engines) == 1)


@in_trio
async def test_a_replaced_avatar_shows_nothing_of_the_old_ones(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    """The same sound, the same name: frames of the new size, made anew, and then kept as well."""
    pcm, sizes = speech(0.6, 4.0), []
    for height in (192, 208):
        put(tiny_avatar, folder / "guest.lsa", height)
        with ControlClient(server.folder) as client:
            assert client.change("load", "guest").state in ("loaded", "unchanged")
        before = settled(server)
        enough = kept(before) + 15
        for _ in range(2):
            jpegs = await burst(server, pcm, avatar="guest")
            sizes.append(heights(jpegs))
            when(server, lambda s, most=enough: kept(s) >= most)  # type: ignore[misc]
        assert inferences(settled(server)) == inferences(before) + 15
    assert sizes == [{192}, {192}, {208}, {208}]


def heights(jpegs: list[bytes]) -> set[int]:
    import io

    from PIL import Image

    return {Image.open(io.BytesIO(jpeg)).size[1] for jpeg in jpegs}


@in_trio
async def test_metrics_tell(server: LocalServer) -> None:
    made = {e.name: e for e in settled(server).engines if e.load.inferences}
    assert made
    told: dict[str, float] = {}
    while told != {name: engine.load.inferences for name, engine in made.items()}:
        await trio.sleep(0.05)  # a front is told once a second
        text = urlopen(server.http_url + "/metrics").read().decode()
        figures = dict(
            line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
        )
        total = 'lipsync_fast_engine_inferences_total{{engine="{}"}}'
        told = {name: float(figures.get(total.format(name), "0")) for name in made}
    for engine in made.values():
        for stage in ("queue", "frame"):
            name = f"lipsync_fast_engine_{stage}_seconds_count"
            assert float(figures[f'{name}{{engine="{engine.name}"}}']) >= engine.load.inferences
        assert f'_stage_seconds_count{{engine="{engine.name}",stage="decoder"}}' in text
    assert 'lipsync_fast_session_duration_seconds_count{front="front-1"} 0.0' not in text
    results = {name.partition("{")[0] for name in figures}
    assert {
        "lipsync_fast_utterances_total",
        "lipsync_fast_utterance_frames_total",
        "lipsync_fast_utterance_store_bytes",
        "lipsync_fast_utterance_kept_bytes_total",
    } <= results


# ---------------------------------------------------------------- the command
def test_interrupted_by_a_kill_it_goes_on_where_it_was(
    environ: dict[str, str], folder: Path, server: LocalServer
) -> None:
    """Nothing half made can be said; what was made is not made again."""
    path = written(folder / "long.wav", speech(1.6))
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "lipsync_fast", "avatar", "prerender", "base"),
            *(str(path), "--as", "long", "--every-phase", "--threads", "1"),
        ],
        env=environ,
        stderr=subprocess.DEVNULL,
    )
    store = Store(folder / "kept", 64_000_000, 1.0)
    end = time.monotonic() + PATIENCE_S
    while not any(n.name == "long" and n.frames > 64 for n in store.names("tiny")):
        assert process.poll() is None, "it has ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.wait()
    (before,) = (n for n in store.names("tiny") if n.name == "long")
    assert not before.whole
    assert store.named("tiny", "long") is None
    assert "interrupted" in command(environ, "prerendered", "base").stdout
    told = prerender(environ, path, "long", "--every-phase")
    (after,) = (n for n in store.names("tiny") if n.name == "long")
    made = int(told.split(" of them made now")[0].rsplit(" ", 1)[1])
    assert after.whole
    assert 0 < made <= after.frames - before.frames
    removed = command(environ, "unprerender", "base", "long")
    assert removed.returncode == 0
    assert store.named("tiny", "long") is None
    assert "long" not in command(environ, "prerendered", "base").stdout
    store.close()


def test_what_cannot_be_pre_rendered_is_one_line(environ: dict[str, str], folder: Path) -> None:
    empty = written(folder / "empty.wav", GREETING[:0])
    endless = written(folder / "endless.wav", np.zeros(16_000 * 121, np.int16))
    some = written(folder / "some.wav", speech(3.0))
    tiny = {**environ, "LIPSYNC_FAST_UTTERANCES_DISK_MB": "1"}
    tiny["LIPSYNC_FAST_UTTERANCES_FOLDER"] = str(folder / "small")
    off = {**environ, "LIPSYNC_FAST_UTTERANCES_DISK_MB": "0"}
    shut = {**environ, "LIPSYNC_FAST_UTTERANCES_FOLDER": str(some / "no")}
    for given, words, why in (
        (environ, ("prerender", "base", str(empty), "--as", "x"), "0 samples"),
        (environ, ("prerender", "base", str(endless), "--as", "x"), "longer than 120 s"),
        (environ, ("prerender", "nobody", str(some), "--as", "x"), "was not found"),
        (environ, ("prerender", "base", str(some), "--as", ""), "expected 1 to 200"),
        (tiny, ("prerender", "base", str(some), "--as", "x", "--every-phase"), "do not fit"),
        (off, ("prerender", "base", str(some), "--as", "x"), "nothing is kept"),
        (shut, ("prerender", "base", str(some), "--as", "x"), "Not a directory"),
        (environ, ("unprerender", "base", "nothing"), "nothing was pre-rendered"),
    ):
        done = CliRunner().invoke(app, ["avatar", *words], env=given)
        assert done.exit_code == 2, done.output
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert why in errors[0]
