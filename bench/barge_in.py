# SPDX-License-Identifier: Apache-2.0
"""How soon an interrupted avatar is silent, on a real server over a real socket.

    python bench/barge_in.py [--times 50] [--warm-up 8] [--out FILE]

A session hears the shipped recording at once, so that it speaks for long, and is interrupted at a
random moment, again and again. Counted is from the moment at which ``session.interrupt`` is sent to
``session.interrupted``, and to the first frame behind it; none of the frames behind it may be of
what was said before. ``--warm-up``: seconds before the first one.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import trio

import lipsync_fast
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.load import percentiles
from lipsync_fast.benchmark.speech import shipped_recording
from lipsync_fast.client import Session, SessionInterrupted, VideoFrame
from lipsync_fast.client.local import LocalServer

QUIET_FRAMES = 5
"""Looked at behind each interruption."""


async def interrupted(session: Session, rng: random.Random) -> tuple[float, float, int]:
    """Speak and interrupt once: ms to the event, ms to the next frame, spoken frames behind it."""
    await session.send(shipped_recording())
    await session.end_utterance()
    left = rng.randint(3, 60)
    async for event in session:
        left -= isinstance(event, VideoFrame) and event.utterance > 0
        if left <= 0:
            break
    await trio.sleep(rng.uniform(0, 0.04))
    sent = time.monotonic_ns()
    await session.interrupt()
    told = first = 0
    spoken, frames = 0, 0
    async for event in session:
        now = time.monotonic_ns()
        if isinstance(event, SessionInterrupted):
            told = now
        elif told and isinstance(event, VideoFrame):
            first = first or now
            spoken += event.utterance > 0
            frames += 1
            if frames == QUIET_FRAMES:
                break
    return (told - sent) / 1e6, (first - sent) / 1e6, spoken


async def measure(url: str, times: int) -> dict[str, Any]:
    """All interruptions of one session."""
    rng = random.Random(3)
    async with lipsync_fast.connect(url) as session:
        found = [await interrupted(session, rng) for _ in range(times)]
    return {
        "interruptions": times,
        "told_ms": percentiles([told for told, _, _ in found]),
        "next_frame_ms": percentiles([first for _, first, _ in found]),
        "spoken_frames_behind": sum(spoken for _, _, spoken in found),
    }


def main() -> int:
    """Measure and print; exit status 1 where something was said behind an interruption."""
    args = program.options(__doc__, times=50, warm_up=8.0, out=None)
    with LocalServer({"log": {"level": "warning"}, "utterances": {"disk_mb": 0}}) as server:
        time.sleep(args.warm_up)
        found = trio.run(measure, server.url, args.times)
    print(json.dumps(found, indent=1))
    program.keep(args.out, **found)
    return 1 if found["spoken_frames_behind"] else 0


if __name__ == "__main__":
    sys.exit(main())
