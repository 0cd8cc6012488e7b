# SPDX-License-Identifier: Apache-2.0
"""Small parts of tests that talk to a real server through the client library."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.client import Event, Session, UtteranceEnded, VideoFrame
from lipsync_fast.client.local import LocalServer
from lipsync_fast.ipc.status import FrontLoad

Serve = Callable[[Mapping[str, Any]], LocalServer]
P = ParamSpec("P")
T = TypeVar("T")
PATIENCE_S = 120.0
"""Generous: what a test waits for comes at once, but for a machine that is busy."""
SLOW_MACHINE = {"margin_ms": 400, "margin_most_ms": 400, "half_rate": False}
"""For [live]: frames have much time, since other things run here. Some may be late all the same."""
BUSY_MACHINE = {"hung_s": 20.0}
"""For [engines]: who says nothing for some seconds has not hung, but waits for a processor."""
ALONE = {"spares": 0, **BUSY_MACHINE}
"""For [engines] of a server whose engine does not die: it starts in half the time."""
ONE_SPEAKER = {"live": {"speakers": 1, **SLOW_MACHINE}, "engines": ALONE}
GUARDED = {
    "live": SLOW_MACHINE,
    "listen": {"token": "open sesame", "origins": ["https://good.example"]},
    "engines": ALONE,
}
"""Servers of which one does for all tests (``shared_server``)."""


def in_trio(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test in trio; one that hangs fails."""

    @functools.wraps(test)
    def run(*args: P.args, **named: P.kwargs) -> None:
        async def bounded() -> None:
            with trio.fail_after(PATIENCE_S):
                await test(*args, **named)

        trio.run(bounded)

    return run


def speech(seconds: float, start_s: float = 0.5) -> NDArray[np.int16]:
    """A part of the shipped recording, 16 kHz mono."""
    import wave

    path = Path(lipsync_fast.__file__).parent / "data" / "demo" / "speech.wav"
    with wave.open(str(path), "rb") as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    first = round(start_s * 16_000)
    assert len(pcm) >= first + round(seconds * 16_000)
    return pcm[first : first + round(seconds * 16_000)]


async def say(session: Session, pcm: NDArray[np.int16]) -> None:
    """Send a sound at once, and its end."""
    await session.send(pcm)
    await session.end_utterance()


async def speak(session: Session, pcm: NDArray[np.int16]) -> None:
    """Send a sound in pieces of 20 ms, one every 20 ms, and its end."""
    for start in range(0, len(pcm), 320):
        await session.send(pcm[start : start + 320])
        await trio.sleep(0.02)
    await session.end_utterance()


async def until(
    session: Session, kind: type[T], wanted: Callable[[T], bool] = lambda _: True
) -> tuple[T, list[Event]]:
    """Read up to an event; gives it, and what came before it."""
    before: list[Event] = []
    async for event in session:
        if isinstance(event, kind) and wanted(event):
            return event, before
        before.append(event)
    raise AssertionError(f"the session ended before {kind.__name__}; it gave {before[-5:]}")


async def utterance(session: Session, number: int) -> tuple[UtteranceEnded, list[Event]]:
    """Read up to the end of an utterance."""
    return await until(session, UtteranceEnded, lambda e: e.utterance == number)


def spoken(events: list[Event], number: int | None = None) -> list[VideoFrame]:
    """The frames of an utterance, or of all."""
    return [
        e
        for e in events
        if isinstance(e, VideoFrame) and (e.utterance == number if number else e.utterance > 0)
    ]


def assert_whole(ended: UtteranceEnded, frames: list[VideoFrame], count: int) -> None:
    """An utterance has so many frames, and each came once, or is owned up to."""
    assert ended.frames == count
    assert count - ended.dropped - ended.left_out <= len(frames) <= count
    assert sum(not f.repeated for f in frames) == count - ended.dropped


def front_load(server: LocalServer) -> FrontLoad:
    """What the one front has done."""
    (front,) = server.status().fronts
    return front.load


def wait_for(server: LocalServer, found: Callable[[FrontLoad], Any], what: str) -> FrontLoad:
    """Wait until the front's load is as wanted."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        load = front_load(server)
        if found(load):
            return load
        time.sleep(0.02)
    raise AssertionError(f"waited in vain until {what}: {load}\n{server.log()[-3000:]}")
