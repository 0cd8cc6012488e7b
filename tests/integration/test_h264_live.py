# SPDX-License-Identifier: Apache-2.0
"""Streams of H.264 out of a whole server: by the client's library, and through what goes wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from h264 import Viewer, xmp_of
from serving import Server, server
from talking import in_trio, say, speech, spoken, until, utterance

import lipsync_fast
from lipsync_fast.client import Event, SessionInterrupted, SessionStarted, VideoFrame
from lipsync_fast.provenance import CREATOR_MARK

SMALL = 320


class Watcher:
    """Shows all pictures of some events; none may fail."""

    def __init__(self) -> None:
        self.viewer, self.keys, self.shown = Viewer(), 0, 0

    def watch(self, events: list[Event]) -> None:
        for event in events:
            if not isinstance(event, VideoFrame):
                continue
            assert event.codec == "h264"
            assert event.jpeg == b""
            picture = self.viewer.show(event.h264)
            assert picture.shape[:2] == (event.box.height, event.box.width)
            assert event.key == (xmp_of(event.h264) is not None)
            self.keys += event.key
            self.shown += 1


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    with server("[engines]\nthreads = 1\nspares = 1\n") as made:
        made.serving()
        yield made
        made.stop()


def address(served: Server) -> str:
    return f"ws://127.0.0.1:{served.status().ports[0]}"


def test_a_burst_gives_every_frame(served: Server) -> None:
    @in_trio
    async def burst() -> None:
        watcher = Watcher()
        async with lipsync_fast.connect(
            address(served), codec="h264", max_width=SMALL, pace="burst"
        ) as session:
            assert session.started.codec == "h264"
            await say(session, speech(1.0))
            ended, events = await utterance(session, 1)
        frames = spoken(events)
        assert len(frames) == ended.frames == 25
        watcher.watch(events)
        assert frames[0].key
        assert CREATOR_MARK in (xmp_of(frames[0].h264) or b"")
        assert [frame.first for frame in frames] == [True] + [False] * 24

    burst()


def test_a_live_session_rests_speaks_and_is_interrupted(served: Server) -> None:
    @in_trio
    async def talk() -> None:
        watcher = Watcher()
        async with lipsync_fast.connect(address(served), codec="h264", max_width=SMALL) as session:
            await say(session, speech(1.0))
            ended, events = await utterance(session, 1)
            watcher.watch(events)
            assert ended.frames == 25
            assert watcher.shown > 0
            await say(session, speech(3.0))
            await until(session, VideoFrame, lambda e: e.utterance == 2)
            await session.interrupt()
            await until(session, SessionInterrupted)
            watcher = Watcher()  # what was dropped on the way is not missed
            for _ in range(200):  # without a bound there would be a key frame for each
                await session.key_frame()
            begun, keys = await until(session, VideoFrame), []
            watcher.watch([begun[0]])
            while len(keys) < 100:
                frame, events = await until(session, VideoFrame)
                watcher.watch([*events, frame])
                keys.append(frame.key)
            assert 1 <= sum(keys) <= 10

    talk()


def test_another_form_and_jpegs_again(served: Server) -> None:
    @in_trio
    async def change() -> None:
        async with lipsync_fast.connect(address(served), max_width=SMALL) as session:
            frame, _ = await until(session, VideoFrame)
            assert frame.jpeg.startswith(b"\xff\xd8")
            await session.update(codec="h264", bitrate=300_000)
            started, _ = await until(session, SessionStarted)
            assert started.codec == "h264"
            frame, _ = await until(session, VideoFrame, lambda e: e.codec == "h264")
            assert frame.key
            watcher = Watcher()
            watcher.watch([frame])
            await session.update(pictures=False)
            await until(session, SessionStarted)
            await session.update(pictures=True)
            frame, _ = await until(session, VideoFrame)
            watcher = Watcher()
            watcher.watch([frame])
            await session.update(codec="jpeg")
            frame, _ = await until(session, VideoFrame, lambda e: e.codec == "jpeg")
            assert frame.jpeg.startswith(b"\xff\xd8")

    change()


def test_the_death_of_an_engine_costs_a_key_frame(served: Server) -> None:
    @in_trio
    async def lose() -> None:
        watcher = Watcher()
        async with lipsync_fast.connect(
            address(served), codec="h264", max_width=SMALL, pace="burst"
        ) as session:
            await say(session, speech(6.0))
            frame, events = await until(session, VideoFrame, lambda e: e.sequence == 20)
            watcher.watch([*events, frame])
            (active,) = [e for e in served.status().engines if e.state == "ready"]
            os.kill(active.pid, signal.SIGKILL)
            ended, events = await utterance(session, 1)
        watcher.watch(events)
        assert (ended.frames, ended.dropped) == (150, 0)
        assert watcher.shown == 150
        assert watcher.keys > 4, "every 48 frames, and where the other engine began"

    lose()
    served.serving()


def test_clients_mistakes_are_told(served: Server) -> None:
    with pytest.raises(ValueError, match="codec"):
        lipsync_fast.connect(address(served), codec="vp9")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bitrate"):
        lipsync_fast.connect(address(served), bitrate=100_000)
    with pytest.raises(ValueError, match="bitrate"):
        lipsync_fast.connect(address(served), codec="h264", bitrate=3)
    with pytest.raises(ValueError, match="content"):
        lipsync_fast.connect(address(served), codec="h264", content="mouth")
