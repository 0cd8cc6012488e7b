# SPDX-License-Identifier: Apache-2.0
"""How soon a known utterance begins, and that no network runs for it, on a real server and socket.

    python bench/prerendered.py [--times 40] [--others 8] [--seconds 0.8] [--warm-up 10]
                                [--most-ms 20] [--out FILE]

A part of the shipped recording is pre-rendered as ``lipsync-fast avatar prerender`` does it, into a
folder of its own. A live session then has it said, again and again, with pauses of any length
between: by name, counted from the moment at which ``utterance.say`` is sent; and by sending the
same sound at once, counted from its last byte. For comparison, sounds that were never said before
(``--others`` of them) are sent in the same way. ``--seconds`` of sound, ``--warm-up`` seconds
before the first; the exit status is 1 where a first picture takes longer than ``--most-ms``. The
pictures' networks are counted before and behind each part.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import trio
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.load import percentiles
from lipsync_fast.benchmark.speech import shipped_recording
from lipsync_fast.client import Session, UtteranceEnded, VideoFrame
from lipsync_fast.client.local import LocalServer

NAME = "greeting"
PAUSE_S = 0.35, 1.2
"""Between two utterances: the mouth has closed again, and the loop is anywhere."""
BEAT_S = 0.6
"""Until the engines have told of what they have done."""


def prerendered(sound: Path, folder: Path) -> float:
    """Pre-render a sound; the seconds that it took."""
    begun = time.monotonic()
    command = [sys.executable, "-P", "-m", "lipsync_fast", "avatar", "prerender", "demo"]
    environ = {**os.environ, "LIPSYNC_FAST_UTTERANCES_FOLDER": str(folder)}
    subprocess.run([*command, str(sound), "--as", NAME, "-q"], check=True, env=environ)
    return time.monotonic() - begun


async def begun_after_ms(
    session: Session, speak: Callable[[], Awaitable[None]]
) -> tuple[float, int]:
    """Speak: ms to the first picture of the utterance, and how many of its frames were late."""
    await speak()
    sent, first, repeated = time.monotonic_ns(), 0, 0
    async for event in session:
        if isinstance(event, VideoFrame) and event.utterance:
            first = first or time.monotonic_ns()
            repeated += event.repeated
        if isinstance(event, UtteranceEnded):
            return (first - sent) / 1e6, repeated + event.dropped
    raise RuntimeError("the session ended")


async def part(
    server: LocalServer,
    times: int,
    rng: random.Random,
    speak: Callable[[Session, int], Awaitable[None]],
) -> dict[str, Any]:
    """One way of speaking, so many times in a session."""
    before = inferences(server)
    found = []
    async with lipsync_fast.connect(server.url) as session:
        for number in range(times):
            pause = rng.uniform(*PAUSE_S)
            with trio.move_on_after(pause):
                async for _ in session:
                    pass
            found.append(await begun_after_ms(session, lambda n=number: speak(session, n)))  # type: ignore[misc]
        with trio.move_on_after(BEAT_S):  # the mouth's way back is made, too
            async for _ in session:
                pass
    await trio.sleep(BEAT_S)
    return {
        "utterances": times,
        "first_picture_ms": percentiles([ms for ms, _ in found]),
        "late_frames": sum(late for _, late in found),
        "inferences": inferences(server) - before,
    }


def inferences(server: LocalServer) -> int:
    """Frames that networks have made, of all engines."""
    return sum(engine.load.inferences for engine in server.status().engines)


async def measure(
    server: LocalServer, pcm: NDArray[np.int16], times: int, others: int
) -> dict[str, Any]:
    """All parts."""
    rng = random.Random(5)

    async def by_name(session: Session, _: int) -> None:
        await session.say(NAME)

    async def by_sound(session: Session, _: int) -> None:
        await session.send(pcm)
        await session.end_utterance()

    async def never_said(session: Session, number: int) -> None:
        other = pcm.copy()
        other[:200] += number + 1
        await session.send(other)
        await session.end_utterance()

    return {
        "by_name": await part(server, times, rng, by_name),
        "by_sound": await part(server, times, rng, by_sound),
        "never_said_before": await part(server, others, rng, never_said),
    }


def main() -> int:
    """Measure and print; exit status 1 where a known utterance needed a network, or came late."""
    args = program.options(
        __doc__, times=40, others=8, seconds=0.8, warm_up=10.0, most_ms=20.0, out=None
    )
    pcm = shipped_recording()[8_000 : 8_000 + int(16_000 * args.seconds)]
    with tempfile.TemporaryDirectory(prefix="known-") as name:
        folder, sound = Path(name), Path(name) / "sound.wav"
        with wave.open(str(sound), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(pcm.tobytes())
        took_s = prerendered(sound, folder)
        config = {
            "utterances": {"folder": name},
            "live": {"half_rate": False},
            "log": {"level": "warning"},
        }
        with LocalServer(config) as server:
            time.sleep(args.warm_up)
            found = trio.run(measure, server, pcm, args.times, args.others)
    found = {"seconds": args.seconds, "prerender_s": round(took_s, 1), **found}
    print(json.dumps(found, indent=1))
    program.keep(args.out, **found)
    known = [found["by_name"], found["by_sound"]]
    late = any(each["first_picture_ms"]["most"] > args.most_ms for each in known)
    return 1 if late or any(each["inferences"] for each in known) else 0


if __name__ == "__main__":
    sys.exit(main())
