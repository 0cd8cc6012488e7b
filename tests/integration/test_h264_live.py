# SPDX-License-Identifier: Apache-2.0
"""Streams of H.264 out of a whole server: by the client's library, and through what goes wrong."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest
from h264 import Viewer, xmp_of
from talking import (
    BUSY_MACHINE,
    PATIENCE_S,
    SLOW_MACHINE,
    front_load,
    in_trio,
    say,
    speech,
    spoken,
    until,
    utterance,
    wait_for,
)

import lipsync_fast
from lipsync_fast.client import Event, SessionInterrupted, SessionStarted, VideoFrame
from lipsync_fast.client.local import LocalServer
from lipsync_fast.provenance import CREATOR_MARK

pytestmark = pytest.mark.clock

SMALL = 320
NOWHERE = "ws://127.0.0.1:1"
"""Nothing is to be sent there."""


class Watcher:
    """Shows all pictures of some events; none may fail."""

    def __init__(self) -> None:
        self.viewer, self.shown = Viewer(), 0
        self.keys: list[int] = []
        """Which of those shown were key frames."""

    def watch(self, events: list[Event]) -> None:
        for event in events:
            if not isinstance(event, VideoFrame):
                continue
            assert event.codec == "h264"
            assert event.jpeg == b""
            picture = self.viewer.show(event.h264)
            assert picture.shape[:2] == (event.box.height, event.box.width)
            assert event.key == (xmp_of(event.h264) is not None)
            if event.key:
                self.keys.append(self.shown)
            self.shown += 1


@pytest.fixture(scope="module")
def served() -> Iterator[LocalServer]:
    """With the demo avatar; its spare is made while the first tests run."""
    config = {"live": SLOW_MACHINE, "engines": {"gpus": "none", "spares": 1, **BUSY_MACHINE}}
    with LocalServer(config, start_s=PATIENCE_S) as made:
        yield made


def active_beside_a_spare(served: LocalServer) -> int:
    """The process of the engine that works, once another one could take its place."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        engines = served.status().engines
        working = [e.pid for e in engines if e.state == "ready"]
        if working and any(e.state == "spare" for e in engines):
            return working[0]
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for a spare\n{served.log()[-3000:]}")


def test_a_burst_gives_every_frame(served: LocalServer) -> None:
    @in_trio
    async def burst() -> None:
        watcher = Watcher()
        async with lipsync_fast.connect(
            served.url, codec="h264", max_width=SMALL, pace="burst"
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
    load = next(e.load for e in served.status().engines if e.load.encoded)
    assert load.encoded > 0
    assert load.encodes_per_s > 0


def test_a_live_session_rests_speaks_and_is_interrupted(served: LocalServer) -> None:
    @in_trio
    async def talk() -> None:
        watcher = Watcher()
        async with lipsync_fast.connect(served.url, codec="h264", max_width=SMALL) as session:
            await say(session, speech(1.0))
            ended, events = await utterance(session, 1)
            watcher.watch(events)
            assert ended.frames == 25
            assert watcher.shown > 0
            await say(session, speech(3.0))
            frame, events = await until(session, VideoFrame, lambda e: e.utterance == 2)
            watcher.watch([*events, frame])
            await session.interrupt()
            _, events = await until(session, SessionInterrupted)
            watcher.watch(events)  # what is dropped on the way is not missed
            keys = []
            while len(keys) < 100:
                await session.key_frame()  # without a bound each would be one
                frame, _ = await until(session, VideoFrame)
                watcher.watch([frame])
                keys.append(frame.key)
            assert 1 <= sum(keys) <= 50

    talk()


def test_another_form_and_jpegs_again(served: LocalServer) -> None:
    @in_trio
    async def change() -> None:
        async with lipsync_fast.connect(served.url, max_width=SMALL) as session:
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


def test_the_death_of_an_engine_costs_a_key_frame(served: LocalServer) -> None:
    active, before = active_beside_a_spare(served), front_load(served).redispatched

    @in_trio
    async def lose() -> None:
        watcher = Watcher()
        async with lipsync_fast.connect(
            served.url, codec="h264", max_width=SMALL, pace="burst"
        ) as session:
            await say(session, speech(6.0))
            frame, events = await until(session, VideoFrame, lambda e: e.sequence == 20)
            os.kill(active, signal.SIGKILL)
            watcher.watch([*events, frame])
            ended, events = await utterance(session, 1)
        watcher.watch(events)
        assert (ended.frames, ended.dropped) == (150, 0)
        assert watcher.shown == 150
        starts = [*watcher.keys, 150]
        assert starts[0] == 0
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert max(gaps) <= 48, "the other engine begins with one, and goes on in the same measure"

    lose()
    wait_for(served, lambda load: load.redispatched > before, "its jobs go to the other one")


def test_clients_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="codec"):
        lipsync_fast.connect(NOWHERE, codec="vp9")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bitrate"):
        lipsync_fast.connect(NOWHERE, bitrate=100_000)
    with pytest.raises(ValueError, match="bitrate"):
        lipsync_fast.connect(NOWHERE, codec="h264", bitrate=3)
    with pytest.raises(ValueError, match="content"):
        lipsync_fast.connect(NOWHERE, codec="h264", content="mouth")
