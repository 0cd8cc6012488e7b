# SPDX-License-Identifier: Apache-2.0
"""Live sessions: each gets 40 ms of sound 25 times a second, whatever becomes of its frames.

A frame's time runs from when its last needed sample was due to when its picture was read from the
ring; so what the feeding process is late by counts against it, and is told apart.
"""

from __future__ import annotations

import time

import numpy as np

from gpu_check.context import Context
from gpu_check.rig import Rig, Speaker, spread
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage

STEPS = (30, 60, 90, 120, 180, 240)
SECONDS, WARM_S, LAST_S = 6.0, 1.5, 2.0
"""Seconds of a step; those of it that are not counted; and those that answers are waited for."""
BEAT_S = 0.04


def main(context: Context) -> None:
    """More and more sessions of the reference's avatar; the demo's at the last step."""
    from lipsync_fast.avatars.library import AvatarLibrary

    name = "tiny" if context.dry else "reference"
    paths = {name: context.avatars / name}
    if not context.dry:
        paths["demo"] = AvatarLibrary().find("demo")
    manifests = {}
    for key, path in paths.items():
        with AvatarPackage.open(path) as package:
            manifests[key] = package.manifest
    with Rig(paths, "fp32" if context.dry else "fp16", context.dry) as rig:
        rig.expect("ready")
        rig.expect("graphs")
        rig.settle(20)
        first = 1
        for count in (1,) if context.dry else STEPS:
            with context.found.attempt(f"{count} sessions"):
                seconds = 0.3 if context.dry else SECONDS
                row = _step(rig, name, manifests[name], first, count, seconds)
                context.found.value("sessions", str(count), value=row)
                context.found.check(f"{count} sessions were fed", True, str(row))
            first += count
        if not context.dry:
            with context.found.attempt("demo avatar"):
                count = STEPS[-1]
                row = _step(rig, "demo", manifests["demo"], first, count, SECONDS)
                context.found.value("sessions with the demo avatar", str(count), value=row)


def _step(
    rig: Rig, name: str, manifest: Manifest, first: int, count: int, seconds: float
) -> dict[str, float]:
    rng = np.random.default_rng()
    # Sound enough that the first frames are decided when the step begins.
    speakers = [Speaker(first + k, name, manifest, rng, seconds + 4.0) for k in range(count)]
    for speaker in speakers:
        speaker.hear(16_000 + 640 * int(rng.integers(0, 8)))
        for _ in speaker.jobs():
            pass
    numbers = {speaker.number: k for k, speaker in enumerate(speakers)}
    begun = time.perf_counter() + 0.05
    due = sorted(
        (begun + beat * BEAT_S + k * BEAT_S / count, k)
        for beat in range(int(seconds / BEAT_S))
        for k in range(count)
    )
    sent: dict[tuple[int, int], float] = {}
    late: list[float] = []
    times: list[float] = []

    def take(timeout_s: float) -> None:
        while (found := rig.take(timeout_s)) is not None:
            answer, _ = found
            was = sent.pop((numbers.get(answer.session, -1), answer.number), None)
            if was is not None and was >= begun + min(WARM_S, seconds / 2):
                times.append((time.perf_counter() - was) * 1e3)
            timeout_s = 0.0

    for when, k in due:
        while (left := when - time.perf_counter()) > 0:
            take(left)
        late.append((time.perf_counter() - when) * 1e3)
        speakers[k].hear()
        for job, pcm in speakers[k].jobs():
            sent[k, job.number] = when
            rig.put(job, pcm)
        take(0.0)
    until = time.perf_counter() + LAST_S
    while sent and time.perf_counter() < until:
        take(0.05)
    lost = len(sent)
    while sent and time.perf_counter() < until + 8 * LAST_S:  # they must not fall into what follows
        take(0.05)
    if not times:
        raise RuntimeError("no frames came")
    return {
        **spread(times),
        "frames": len(times),
        "lost": lost,
        "feeding_late_p99_ms": spread(late)["p99_ms"],
    }
