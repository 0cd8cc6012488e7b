# SPDX-License-Identifier: Apache-2.0
"""A server whose engines lose their processors to others: what is shown, and who is let in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from talking import ALONE, PATIENCE_S, in_trio, speech

import lipsync_fast
from lipsync_fast.client import (
    AudioFrame,
    Event,
    Session,
    SessionOverloaded,
    Stats,
    UtteranceEnded,
    VideoFrame,
)
from lipsync_fast.client.local import LocalServer

pytestmark = [pytest.mark.clock, pytest.mark.alone]
SLOWED = Path(__file__).resolve().parents[1] / "slowed.py"
SLOW_S = 0.05
"""Two threads make 40 frames a second then, less than two that speak need."""


@pytest.fixture
def slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file says a time, frames take so much longer."""
    path = tmp_path / "seconds"
    monkeypatch.setenv("SLOWED", str(path))
    return path


@pytest.fixture
def server(slowed: Path, tiny_avatar: Path) -> Iterator[LocalServer]:
    config = {
        "avatars": {"default": str(tiny_avatar)},
        "engines": {"threads": 2, **ALONE},
        # What the engine says is what counts here, not how busy this machine is.
        "live": {"margin_ms": 400.0, "margin_most_ms": 10_000.0},
    }
    command = [sys.executable, "-P", str(SLOWED), "serve"]
    with LocalServer(config, command=command) as made:
        yield made


async def talk(session: Session, until: trio.Event) -> None:
    """Speak in real time until told, then end."""
    sound, k = speech(9.0, 1.0), 0
    begun = trio.current_time()
    while not until.is_set():
        start = k * 320 % (len(sound) - 320)
        await session.send(sound[start : start + 320])
        k += 1
        await trio.sleep_until(begun + k * 0.02)
    await session.end_utterance()


@in_trio
async def test_all_fall_together_to_every_second_picture_and_come_back(
    server: LocalServer, slowed: Path
) -> None:
    told: list[dict[float, int]] = [{}, {}]
    got: list[list[Event]] = [[], []]
    enough = trio.Event()

    async def listen(number: int, session: Session) -> None:
        async for event in session:
            got[number].append(event)
            if isinstance(event, Stats):
                told[number][event.fps] = len(got[number])
            if isinstance(event, UtteranceEnded):
                return

    async def until(fps: float) -> None:
        with trio.fail_after(PATIENCE_S):
            while not all(fps in each for each in told):
                await trio.sleep(0.05)

    before = server.status()
    assert before.capacity > 100
    async with (
        lipsync_fast.connect(server.url, idle=False, echo_audio=True) as first,
        lipsync_fast.connect(server.url, idle=False) as second,
        trio.open_nursery() as nursery,
    ):
        for number, session in enumerate((first, second)):
            nursery.start_soon(listen, number, session)
            nursery.start_soon(talk, session, enough)
        await trio.sleep(3)
        slowed.write_text(str(SLOW_S))
        await until(12.5)
        with trio.fail_after(PATIENCE_S):
            while (status := server.status()).fronts[0].load.speech_stride == 1:
                await trio.sleep(0.05)
        assert status.capacity < 50
        assert status.speakers == 1
        async with lipsync_fast.connect(server.url, idle=False) as third:
            await third.send(speech(0.2))
            async for event in third:
                if isinstance(event, SessionOverloaded):
                    break
        await trio.sleep(3)
        slowed.unlink()
        for each in told:
            each.pop(25.0, None)
        await until(25.0)
        enough.set()
    for events in got:
        ended = events[-1]
        assert isinstance(ended, UtteranceEnded)
        shown = [e for e in events if isinstance(e, VideoFrame) and e.utterance]
        assert len(shown) == ended.frames - ended.left_out
        assert ended.left_out >= 25
        assert shown[0].first
        assert shown[-1].last
    heard = b"".join(e.pcm for e in got[0] if isinstance(e, AudioFrame))
    ended = got[0][-1]
    assert isinstance(ended, UtteranceEnded)
    assert ended.frames - 1 < len(heard) / 1280 <= ended.frames, "all of the sound comes back"
    assert server.status().fronts[0].load.left_out >= 50
