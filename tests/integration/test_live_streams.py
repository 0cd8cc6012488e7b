# SPDX-License-Identifier: Apache-2.0
"""lipsync.v1 on a running server: every message, order, barge-in, under-run, overload, drain."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trio
from PIL import Image
from sounds import write_wav
from talking import (
    ALONE,
    BUSY_MACHINE,
    GUARDED,
    ONE_SPEAKER,
    SLOW_MACHINE,
    Serve,
    assert_whole,
    front_load,
    in_trio,
    say,
    speech,
    spoken,
    until,
    utterance,
    wait_for,
)
from websockets.exceptions import InvalidStatus
from websockets.trio.client import connect as connect_raw
from websockets.typing import Subprotocol

import lipsync_fast
from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.client import (
    AudioFrame,
    ErrorMessage,
    Pong,
    SessionError,
    SessionInterrupted,
    SessionOverloaded,
    SessionStarted,
    Stats,
    UtteranceEnded,
    UtteranceStarted,
    VideoFrame,
)
from lipsync_fast.client.local import LocalServer
from lipsync_fast.geometry import Rect
from lipsync_fast_client.duplex import DuplexClientConnection
from lipsync_fast_client.protocol import (
    SUBPROTOCOL,
    AudioFormat,
    SessionStart,
    VideoFormat,
    decode_server,
    encode,
)

pytestmark = pytest.mark.clock

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """With the demo avatar, and the same one under a second name."""
    folder = tmp_path_factory.mktemp("avatars")
    shutil.copy(shipped_folder() / "demo.lsa", folder / "twin.lsa")
    config = {
        "live": {"speakers": 4, **SLOW_MACHINE},
        "avatars": {"folders": [str(folder)]},
        "engines": BUSY_MACHINE,
    }
    with LocalServer(config) as server:
        yield server


# ---------------------------------------------------------------- the conversation
@in_trio
async def test_pictures_are_sent_no_more_and_again(server: LocalServer) -> None:
    """In the middle of an utterance: sound and messages go on, nothing else is changed."""
    async with lipsync_fast.connect(server.url, echo_audio=True) as session:
        await say(session, speech(6.0))
        _, events = await until(session, VideoFrame, lambda f: f.utterance > 0)
        await session.update(pictures=False)
        started, before = await until(session, SessionStarted)
        assert (started.avatar, started.width) == ("demo", 1280)
        ended, unseen = await until(session, UtteranceEnded)
        assert ended.frames == 150
        assert not [e for e in unseen if isinstance(e, VideoFrame)]
        heard = [e for e in [*events, *before, *unseen] if isinstance(e, AudioFrame)]
        assert sum(len(e.pcm) for e in heard) == 2 * 6 * 16_000, "each of its samples, once"
        await session.ping(1)
        _, idle = await until(session, Pong)
        assert not [e for e in idle if isinstance(e, VideoFrame)]
        await session.update(pictures=True)
        await until(session, SessionStarted)
        first, _ = await until(session, VideoFrame)
        assert first.sequence == 1 + max(
            e.sequence
            for e in [*events, *before, *unseen]
            if isinstance(e, VideoFrame | AudioFrame)
        )


@in_trio
async def test_a_session_may_begin_without_pictures(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, echo_audio=True, pictures=False) as session:
        await say(session, speech(1.0))
        ended, events = await utterance(session, 1)
        assert ended.frames == 25
        assert not [e for e in events if isinstance(e, VideoFrame)]
        assert len([e for e in events if isinstance(e, AudioFrame)]) == 25


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_the_example_of_the_document(server: LocalServer, tmp_path: Path, library: str) -> None:
    if not DOCUMENT.exists():
        pytest.skip("docs/ is not here: installed without its sources")
    example = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    program = example.group(1)
    if library == "trio":
        assert "asyncio.run(main(*sys.argv[1:]))" in program
        program = "import trio\n" + program.replace(
            "asyncio.run(main(*sys.argv[1:]))", "trio.run(main, *sys.argv[1:])"
        )
    samples = speech(1.0)[:, None].astype(np.float32) / 32768
    sound = write_wav(tmp_path / "speech.wav", samples)
    done = subprocess.run(
        [sys.executable, "-c", program, server.url, str(sound)],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 25
    assert lines[24].startswith("0.96 s: a picture of ")


@in_trio
async def test_a_whole_conversation(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, avatar="demo") as session:
        started = session.started
        assert (started.avatar, started.width, started.height) == ("demo", 1280, 720)
        assert started.fps == 25
        assert started.latency_ms > 200
        x1, y1, x2, y2 = started.bounds.corners
        assert 0 < x1 < x2 < 1280
        assert 0 < y1 < y2 < 720
        idle = [await anext(session) for _ in range(5)]
        await session.ping("é 1")
        pong, more = await until(session, Pong)
        idle += more
        await say(session, speech(1.0))
        begun, before = await until(session, UtteranceStarted)
        ended, during = await utterance(session, 1)
        stats, after = await until(session, Stats)
    assert pong == Pong(id="é 1")
    for frame in [*idle, *before, *after]:
        assert isinstance(frame, VideoFrame)
        assert (frame.kind, frame.utterance, frame.content) == ("idle", 0, "frame")
        assert frame.box == Rect(0, 0, 1280, 720)
    assert begun == UtteranceStarted(utterance=1)
    frames = spoken(during)
    assert_whole(ended, frames, 25)
    assert [e for e in during if isinstance(e, VideoFrame)] == frames
    assert [f.first for f in frames] == [True] + 24 * [False]
    assert [f.last for f in frames] == 24 * [False] + [True]
    assert {f.kind for f in frames} == {"speech"}
    assert stats.frames >= 25
    assert (stats.late, stats.skipped) == (ended.dropped, 0)
    assert (stats.latency_ms is None) == (ended.dropped == 25)
    with Image.open(io.BytesIO(frames[3].jpeg)) as picture:
        assert picture.size == (1280, 720)
        assert picture.mode == "RGB"


@in_trio
async def test_the_clock(server: LocalServer) -> None:
    """Slots of 40 ms from the session's start to its end, through three utterances."""
    events = []
    async with lipsync_fast.connect(server.url) as session:
        for number in (1, 2, 3):
            await say(session, speech(0.48 + 0.01 * number))
            ended, before = await utterance(session, number)
            assert ended.frames == 13
            events += [*before, ended]
    frames = [e for e in events if isinstance(e, VideoFrame)]
    steps = np.diff([f.pts_us for f in frames])
    assert np.all(np.diff([f.sequence for f in frames]) == 1)
    assert np.all(steps >= 40_000)
    assert np.all(steps < 80_000)
    off = [k + 1 for k, step in enumerate(steps) if step != 40_000]
    assert all(frames[k].utterance == 0 for k in off), "moved within an utterance"
    assert len(off) <= 3


@pytest.mark.parametrize("pace", ["live", "burst"])
def test_the_look_of_pictures(server: LocalServer, pace: str) -> None:
    @in_trio
    async def stream() -> None:
        named = {"pace": pace, "idle": False, "quality": 40}
        async with lipsync_fast.connect(server.url, max_width=640, **named) as session:
            assert (session.started.width, session.started.height) == (640, 360)
            await say(session, speech(0.2))
            _, events = await utterance(session, 1)
            small = spoken(events)
        async with lipsync_fast.connect(server.url, content="mouth", **named) as session:
            bounds = session.started.bounds
            await say(session, speech(0.2))
            _, events = await utterance(session, 1)
            mouths = spoken(events)
        assert len(small) == len(mouths) == 5
        for frame in [*small, *mouths]:
            with Image.open(io.BytesIO(frame.jpeg)) as picture:
                picture.load()
                assert picture.size == frame.box.size
        assert {f.box for f in small} == {Rect(0, 0, 640, 360)}
        assert {f.content for f in mouths} == {"mouth"}
        assert mouths[0].box.size == bounds.size
        assert all(m.box.x > 0 and m.box.y > 0 for m in mouths)

    stream()


@in_trio
async def test_update_changes_avatar_and_pictures_behind_what_is_spoken(
    server: LocalServer,
) -> None:
    async with lipsync_fast.connect(server.url) as session:
        await say(session, speech(0.6))
        await until(session, UtteranceStarted)
        await session.update(avatar="twin", max_width=320)
        started, before = await until(session, SessionStarted)
        assert (started.avatar, started.width, started.height) == ("twin", 320, 180)
        if not any(isinstance(e, UtteranceEnded) for e in before):
            await utterance(session, 1)
        await session.update(avatar="nobody")
        error, _ = await until(session, ErrorMessage)
        assert (error.code, error.fatal) == ("unknown_avatar", False)
        frames, number = list[VideoFrame](), 1
        while not frames:  # until the first picture of a look is made, none stands in
            number += 1
            await say(session, speech(0.4))
            ended, events = await utterance(session, number)
            assert ended.frames == 10
            frames = spoken(events, number)
        for frame in frames:
            with Image.open(io.BytesIO(frame.jpeg)) as picture:
                assert picture.size == (320, 180)


@pytest.mark.parametrize(
    ("rate", "form", "channels"), [(16_000, "s16le", 1), (44_100, "f32le", 2), (8_000, "s16le", 2)]
)
def test_echo_is_the_sound_on_the_pictures_clock(
    server: LocalServer, rate: int, form: str, channels: int
) -> None:
    time_s = np.arange(round(0.5 * rate)) / rate
    wave = np.stack([0.4 * np.sin(2 * np.pi * (200 + 90 * c) * time_s) for c in range(channels)], 1)
    pcm = wave.astype("<f4") if form == "f32le" else np.rint(wave * 32768).astype("<i2")
    mono = pcm.astype(np.float64).mean(axis=1) * (32768 if form == "f32le" else 1)

    @in_trio
    async def stream() -> None:
        async with lipsync_fast.connect(
            server.url, sample_rate=rate, format=form, channels=channels, pace="burst",
            echo_audio=True,
        ) as session:  # fmt: skip
            await session.send(pcm.tobytes())
            await session.end_utterance()
            _, events = await utterance(session, 1)
        media = [e for e in events if isinstance(e, (AudioFrame, VideoFrame))]
        assert [type(e) for e in media] == 13 * [AudioFrame, VideoFrame]
        for sound, frame in zip(media[::2], media[1::2], strict=True):
            assert (sound.pts, sound.utterance) == (frame.pts, 1)
        echo = np.frombuffer(b"".join(e.pcm for e in media if isinstance(e, AudioFrame)), "<i2")
        assert len(echo) == len(mono)
        assert np.abs(echo - mono).max() <= 1

    stream()


# ---------------------------------------------------------------- turns
@pytest.mark.parametrize("pace", ["live", "burst"])
def test_nothing_of_what_was_said_comes_behind_an_interruption(
    server: LocalServer, pace: str
) -> None:
    @in_trio
    async def stream() -> None:
        async with lipsync_fast.connect(server.url, pace=pace) as session:
            await session.send(speech(6.0))
            await until(session, VideoFrame, lambda f: f.utterance == 1)
            await session.interrupt()
            interrupted, before = await until(session, SessionInterrupted)
            frames = [e for e in before if isinstance(e, VideoFrame)]
            assert interrupted.last_frame >= (frames[-1].sequence if frames else 0)
            await say(session, speech(0.4, start_s=2))
            ended, after = await utterance(session, 2)
            assert_whole(ended, spoken(after, 2), 10)
            assert not spoken(after, 1)
            assert not [e for e in after if isinstance(e, UtteranceEnded)]
            newest = next(e for e in after if isinstance(e, VideoFrame))
            assert newest.sequence > interrupted.last_frame

    stream()


@in_trio
async def test_an_interruption_of_nothing(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, idle=False) as session:
        await session.interrupt()
        interrupted, _ = await until(session, SessionInterrupted)
        assert interrupted.last_frame == -1
        await session.end_utterance()  # of none: nothing happens
        await say(session, speech(0.2))
        ended, _ = await utterance(session, 1)
        assert ended.frames == 5


@in_trio
async def test_an_under_run_rests_and_loses_nothing(server: LocalServer) -> None:
    sound = speech(1.6)
    async with lipsync_fast.connect(server.url) as session:
        await session.send(sound[:12_800])
        first, _ = await until(session, VideoFrame, lambda f: f.utterance == 1)
        rest, begun = await until(session, VideoFrame, lambda f: f.kind == "idle")
        await until(session, VideoFrame, lambda f: f.kind == "idle")
        await say(session, sound[12_800:])
        ended, more = await utterance(session, 1)
    frames = [first, *spoken(begun), *spoken(more)]
    assert_whole(ended, frames, 40)
    assert rest.pts > spoken(begun)[-1].pts
    pts = [f.pts_us for f in frames]
    assert max(np.diff(pts)) > 80_000, "the mouth did not rest"
    assert np.all(np.diff(pts) >= 40_000), "it ran faster to catch up"
    assert [f.last for f in frames] == (len(frames) - 1) * [False] + [True]


@in_trio
async def test_ten_minutes_of_sound_at_once_are_not_all_taken(server: LocalServer) -> None:
    """The server reads no further than it may keep; the client's send waits; others go on."""
    minutes = np.tile(speech(8.0), 75)
    rss_before = _front_memory_mb(server)
    sent_all = trio.Event()
    async with lipsync_fast.connect(server.url) as session:

        async def send() -> None:
            await session.send(minutes)
            sent_all.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            stats, _ = await until(session, Stats, lambda s: s.queued_ms > 55_000)
            later, _ = await until(session, Stats)
            assert not sent_all.is_set()
            for each in (stats, later):
                assert each.queued_ms < 60_000 + 1000 * (65_536 / 2 / 16_000) + 100
            assert _front_memory_mb(server) - rss_before < 100
            async with lipsync_fast.connect(server.url) as other:
                await until(other, VideoFrame, lambda f: f.sequence >= 10)
            nursery.cancel_scope.cancel()
    load = await trio.to_thread.run_sync(
        wait_for, server, lambda load: load.sessions == 0, "the session has ended"
    )
    assert load.speaking == 0


def _front_memory_mb(server: LocalServer) -> float:
    (front,) = server.status().fronts
    status = Path(f"/proc/{front.pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024


@in_trio
async def test_who_speaks_too_many_is_refused_and_may_come_again(shared_server: Serve) -> None:
    server = shared_server(ONE_SPEAKER)
    refused = {"utterance": front_load(server).refused.get("utterance", 0) + 1}
    async with (
        lipsync_fast.connect(server.url) as first,
        lipsync_fast.connect(server.url) as second,
    ):
        await first.send(speech(1.0))
        await until(first, UtteranceStarted)
        await second.send(speech(0.5))
        overloaded, _ = await until(second, SessionOverloaded)
        assert overloaded.retry_after_ms > 0
        assert overloaded.message
        await until(second, VideoFrame, lambda f: f.kind == "idle")  # it lives
        await second.end_utterance()
        await trio.to_thread.run_sync(
            wait_for, server, lambda load: load.refused == refused, "it is counted"
        )
        await first.end_utterance()
        await utterance(first, 1)
        await say(second, speech(0.5))
        ended, events = await utterance(second, 1)
        assert_whole(ended, spoken(events), 13)


# ---------------------------------------------------------------- leaving
def readiness(server: LocalServer) -> list[tuple[int, bool]]:
    """Status of /health/ready, and whether Envoy is told, for each way to ask; it is live."""
    found = []
    for query in ("", "?unready=404", "?unready=200"):
        asked = urllib.request.Request(f"{server.http_url}/health/ready{query}")
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, headers = answer.status, answer.headers
        except urllib.error.HTTPError as error:
            status, headers = error.code, error.headers
        found.append((status, "X-Envoy-Degraded" in headers))
    with urllib.request.urlopen(f"{server.http_url}/health/live", timeout=60) as answer:
        assert answer.status == 200
    return found


@in_trio
async def test_a_drained_server_says_what_is_being_said() -> None:
    with LocalServer({"live": {"speakers": 2, **SLOW_MACHINE}, "engines": ALONE}) as server:
        async with lipsync_fast.connect(server.url) as session:
            await session.send(speech(1.5))
            await session.end_utterance()
            await until(session, UtteranceStarted)
            assert await trio.to_thread.run_sync(readiness, server) == [(200, False)] * 3
            server.terminate()
            while server.status().state != "draining":
                await trio.sleep(0.05)
            # Balancers go on asking: who is not ready is told from who is gone.
            assert await trio.to_thread.run_sync(readiness, server) == [
                (503, True),
                (404, True),
                (200, True),
            ]
            ended, events = await utterance(session, 1)
            assert_whole(ended, spoken(events), 38)
            with pytest.raises(SessionError, match="going away"):
                await until(session, Pong)
        assert await trio.to_thread.run_sync(server.wait, 60) == 0


@in_trio
async def test_a_second_signal_ends_at_once() -> None:
    config = {"live": SLOW_MACHINE, "drain_seconds": 100, "engines": ALONE}
    with LocalServer(config) as server:
        async with lipsync_fast.connect(server.url) as session:
            await session.send(speech(8.0))
            await until(session, UtteranceStarted)
            server.terminate()
            while server.status().state != "draining":  # two signals at once may count as one
                await trio.sleep(0.05)
            server.terminate()
            assert await trio.to_thread.run_sync(server.wait, 60) == 0
            with pytest.raises(SessionError):
                await until(session, UtteranceEnded)


@in_trio
async def test_stop_closes_as_it_should(server: LocalServer) -> None:
    async with connect_raw(server.url, subprotocols=[SUBPROTOCOL], compression=None) as connection:
        await connection.send(encode(SessionStart(idle=False)))
        assert isinstance(decode_server(str(await connection.recv())), SessionStarted)
        await connection.send('{"type": "session.stop"}')
        await connection.wait_closed()
        assert connection.protocol.close_code == 1000


# ---------------------------------------------------------------- slow readers
@in_trio
async def test_who_reads_slowly_is_skipped_to_the_newest_and_told(server: LocalServer) -> None:
    skipped_before = front_load(server).skipped
    async with (
        connect_raw(
            server.url,
            create_connection=DuplexClientConnection,  # the library's own may hang as it closes
            subprotocols=[SUBPROTOCOL],
            compression=None,
            max_queue=1,
        ) as slow,
        lipsync_fast.connect(server.url) as quick,
    ):
        await slow.send(encode(SessionStart()))
        begun, _ = await until(quick, VideoFrame)
        newest = begun
        while front_load(server).skipped == skipped_before:
            newest, _ = await until(quick, VideoFrame)
        frames: list[VideoFrame] = []
        told: Stats | None = None
        gap = False
        while told is None or not gap:
            message = await slow.recv()
            if isinstance(message, bytes):
                frames.append(_frame(message))
                gap = gap or (len(frames) > 1 and frames[-1].sequence > frames[-2].sequence + 1)
                continue
            event = decode_server(message)
            if isinstance(event, Stats) and event.skipped:
                told = told or event
    sequences = [f.sequence for f in frames]
    assert all(np.diff(sequences) > 0)
    assert max(np.diff(sequences)) > 1, "nothing was left out"
    assert told.skipped >= max(np.diff(sequences)) - 1
    # The other client has got every frame meanwhile.
    assert newest.sequence > begun.sequence


def _frame(message: bytes) -> VideoFrame:
    from lipsync_fast_client.events import media_event

    event = media_event(message)
    assert isinstance(event, VideoFrame)
    return event


@in_trio
async def test_who_reads_a_burst_slowly_gets_all_of_it(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, pace="burst") as session:
        await say(session, speech(3.0))
        # Frames of 50 kB: more than the buffers between hold wait for a reader.
        await trio.to_thread.run_sync(
            wait_for, server, lambda load: load.speaking > 0, "the session speaks"
        )
        ended, events = await utterance(session, 1)
    frames = spoken(events)
    assert (ended.frames, ended.dropped) == (75, 0)
    assert [f.sequence for f in frames] == list(range(75))


# ---------------------------------------------------------------- mistakes and rights
@in_trio
async def test_a_second_start_is_a_mistake_that_hurts_nobody(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url) as session:
        await session._send_raw(encode(SessionStart(audio=AudioFormat(sample_rate=8000))))
        error, _ = await until(session, ErrorMessage)
        assert (error.code, error.fatal) == ("bad_request", False)
        await say(session, speech(0.4))
        ended, _ = await utterance(session, 1)
        assert ended.frames == 10, "the rate was changed"


@pytest.mark.parametrize("offered", [True, False])
def test_a_start_may_be_tried_again(server: LocalServer, offered: bool) -> None:
    """Also without the subprotocol, where the first message is session.start."""

    @in_trio
    async def stream() -> None:
        offers = [SUBPROTOCOL] if offered else None
        async with connect_raw(server.url, subprotocols=offers, compression=None) as connection:
            assert connection.subprotocol == (SUBPROTOCOL if offered else None)
            for text, code in (
                ('{"type": "session.start", "avatar": "nobody"}', "unknown_avatar"),
                ('{"type": "session.start", "avatar": "../demo.lsa"}', "unknown_avatar"),
                ('{"type": "session.start", "audio": {"sample_rate": 1}}', "unsupported_audio"),
                ('{"type": "session.start", "audio": {"format": "mp3"}}', "unsupported_audio"),
                ('{"type": "session.start", "video": {"quality": 0}}', "bad_request"),
                ('{"type": "utterance.end"}', "bad_request"),
                ("[1, 2", "bad_request"),
                (b"\0\1\2", "bad_request"),
            ):
                await connection.send(text)
                error = decode_server(str(await connection.recv()))
                assert isinstance(error, ErrorMessage)
                assert (error.code, error.fatal) == (code, False)
                assert error.message
            await connection.send('{"type": "ping", "id": 3}')
            assert decode_server(str(await connection.recv())) == Pong(id=3)
            await connection.send(encode(SessionStart(video=VideoFormat(max_width=320))))
            started = decode_server(str(await connection.recv()))
            assert isinstance(started, SessionStarted)
            assert started.width == 320

    stream()


@in_trio
async def test_a_hundred_mistakes_are_fatal(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, idle=False) as session:
        for _ in range(100):
            await session._send_raw("nonsense")
        for _ in range(99):
            await until(session, ErrorMessage)
        with pytest.raises(SessionError) as caught:
            await until(session, ErrorMessage)
    assert caught.value.code == "bad_request"


@in_trio
async def test_token_and_origin(shared_server: Serve) -> None:
    server = shared_server(GUARDED)
    for url in (server.url, server.http_url.replace("http", "ws") + "/ws"):
        with pytest.raises(SessionError) as caught:
            async with lipsync_fast.connect(url):
                pass
        assert caught.value.code == "unauthorized"
        with pytest.raises(SessionError, match="token"):
            async with lipsync_fast.connect(url, token="wrong"):
                pass
        async with lipsync_fast.connect(url, token="open sesame") as session:
            assert session.started.avatar == "demo"
        async with lipsync_fast.connect(url + "?token=open%20sesame") as session:
            assert session.started.avatar == "demo"
        word = base64.urlsafe_b64encode(b"open sesame").decode().rstrip("=")
        offered = [Subprotocol(SUBPROTOCOL), Subprotocol(f"lipsync.token.{word}")]
        async with connect_raw(url, subprotocols=offered, compression=None) as page:
            assert page.subprotocol == SUBPROTOCOL
        shown = {"Authorization": "Bearer open sesame"}
        good = shown | {"Origin": "https://good.example"}
        async with connect_raw(url, additional_headers=good, compression=None):
            pass
        evil = shown | {"Origin": "https://evil.example"}
        with pytest.raises(InvalidStatus, match="403"):
            async with connect_raw(url, additional_headers=evil, compression=None):
                pass


@in_trio
async def test_the_http_port_speaks_it_too(server: LocalServer) -> None:
    url = server.http_url.replace("http", "ws") + "/ws"
    async with lipsync_fast.connect(url, pace="burst") as session:
        await say(session, speech(0.4))
        ended, events = await utterance(session, 1)
        assert (ended.frames, len(spoken(events))) == (10, 10)
