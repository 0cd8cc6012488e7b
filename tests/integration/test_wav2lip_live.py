# SPDX-License-Identifier: Apache-2.0
"""A wav2lip avatar in the server: the latency of its manifest, and the frames of a render."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import livetalking
import pytest
import trio
from talking import BUSY_MACHINE, SLOW_MACHINE, in_trio, say, speak, speech, spoken, utterance

import lipsync_fast
from lipsync_fast.client import VideoFrame
from lipsync_fast.client.local import LocalServer

pytestmark = [pytest.mark.clock, pytest.mark.alone]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="the extra train is not installed")
    return livetalking.avatar(tmp_path_factory.mktemp("wav2lip"))


@pytest.fixture(scope="module")
def server(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    config = {
        "live": {"speakers": 4, **SLOW_MACHINE},
        "avatars": {"folders": [str(package.parent)], "default": package.name},
        "engines": BUSY_MACHINE,
        "utterances": {"folder": str(tmp_path_factory.mktemp("kept"))},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIPSYNC_FAST_UTTERANCES_DISK_MB", "64")
        with LocalServer(config) as server:
            yield server


def test_burst_equals_render(server: LocalServer, package: Path) -> None:
    """The first time, and the second time, when no network runs."""
    pcm = speech(0.7)
    got: list[VideoFrame] = []

    def loads() -> tuple[int, int]:
        found = [engine.load for engine in server.status().engines]
        return sum(f.inferences for f in found), sum(f.store.get("kept", 0) for f in found)

    @in_trio
    async def stream() -> None:
        got.clear()
        async with lipsync_fast.connect(server.url, pace="burst") as session:
            await say(session, pcm)
            _, events = await utterance(session, 1)
            got.extend(spoken(events))

    stream()
    with lipsync_fast.open(package, backend="cpu") as avatar:
        wanted = list(avatar.render(pcm, 16_000))
    assert len(got) == len(wanted) == 18
    assert [f.jpeg for f in got] == [w.jpeg for w in wanted]
    end = time.monotonic() + 20
    while loads()[1] < 16 and time.monotonic() < end:
        time.sleep(0.1)
    made, kept = loads()
    # The last five frames see the same last window, over three pictures.
    assert (made, kept) == (18, 16)
    stream()
    assert [f.jpeg for f in got] == [w.jpeg for w in wanted]
    time.sleep(0.6)  # heartbeats come four times a second
    assert loads() == (made, kept)


def test_live_frames_are_render_s(server: LocalServer, package: Path) -> None:
    """On the clock, with a way in from rest, 212.5 ms behind the sound and the margin."""
    sound = speech(1.0)
    got: list[VideoFrame] = []
    latency: list[float] = []

    @in_trio
    async def stream() -> None:
        async with lipsync_fast.connect(server.url) as session:
            latency.append(session.started.latency_ms)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak, session, sound)
                _, events = await utterance(session, 1)
            got.extend(spoken(events))

    stream()
    assert latency == [pytest.approx(612.5, abs=1)]
    assert len(got) == 25
    fresh = [(k, frame) for k, frame in enumerate(got) if not frame.repeated]
    assert len(fresh) > 12, "too many frames were late to say anything"
    with lipsync_fast.open(package, backend="cpu") as avatar:
        starts = [
            s
            for s in range(4)
            if all(avatar.manifest.avatar_frame(k, s) == frame.avatar_frame for k, frame in fresh)
        ]
        wanted = list(avatar.render(sound, 16_000, start_frame=starts[0]))
    assert [frame.jpeg for _, frame in fresh] == [wanted[k].jpeg for k, _ in fresh]
