# SPDX-License-Identifier: Apache-2.0
"""The engine: windows of sound in a ring to JPEGs in a ring.

start         the process's birth to its first frame, and to all captured graphs
closed loop   so many jobs at a time, the next ones when all of those are there
free          always more jobs in the ring than the engine takes at a time
single        one job at a time, with pauses; from its last needed sample
memory        before and after a further avatar, without what is kept to save work
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gpu_check.context import Context
from gpu_check.rig import F32, PATIENCE_S, Rig, Speaker, busy_share, jobs_of, spread
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.ipc.messages import Job

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CLOSED_S, FREE_FRAMES, FREE_DEEP = 2.5, 12_000, 256
SINGLES, SECONDS = 150, 6.0


def main(context: Context) -> None:
    """The reference's avatar, then the demo's."""
    from lipsync_fast.avatars.library import AvatarLibrary

    if context.dry:
        _measure(context, "tiny", context.avatars / "tiny", None)
        return
    folder = context.avatars
    _measure(context, "reference", folder / "reference", folder / "reference-2")
    _measure(context, "demo", AvatarLibrary().find("demo"), None)


def _measure(context: Context, name: str, path: Path, further: Path | None) -> None:
    with AvatarPackage.open(path) as package:
        manifest = package.manifest
    found, rng = context.found, np.random.default_rng()
    with Rig({name: path}, "fp32" if context.dry else "fp16", context.dry) as rig:
        numbers = iter(range(1, 1 << 30))

        def speakers(count: int, seconds: float = SECONDS) -> list[Speaker]:
            return [Speaker(next(numbers), name, manifest, rng, seconds) for _ in range(count)]

        rig.expect("ready")
        with found.attempt(f"{name}: start"):
            _start(context, rig, name, speakers(1)[0], manifest)
        if further is not None:
            with found.attempt(f"{name}: memory"):
                _memory(context, rig, name, further)
        state = rig.settle(25)
        found.value(name, "prepared ahead", value=not state["chores"])
        with found.attempt(f"{name}: single"):
            times = [_single(rig, rng, s) for s in speakers(2 if context.dry else SINGLES, 1.2)]
            found.value(name, "single", value=spread(times))
            found.check(f"{name}: single frames come", True)
        for batch in (1, 2) if context.dry else BATCHES:
            with found.attempt(f"{name}: {batch} at a time"):
                row = _closed(rig, speakers(batch, 20.0), batch, 0.1 if context.dry else CLOSED_S)
                found.value(name, "closed loop", str(batch), value=row)
        with found.attempt(f"{name}: free-running"):
            count = 4 if context.dry else FREE_FRAMES
            row = _free(context, rig, speakers(2 if context.dry else 128), count)
            found.value(name, "free", value=row)
        state = rig.ask(do="state")
        found.value(name, "device memory used, MB", value=state["used"] >> 20)
        found.value(name, "caches, MB", value={k: v >> 20 for k, v in state["caches"].items()})
        found.value(name, "host's processor time, s", value=state["spent"])


def _start(context: Context, rig: Rig, name: str, speaker: Speaker, manifest: Manifest) -> None:
    (job, pcm), *_ = jobs_of([speaker], 1)
    rig.put(job, pcm)
    jpeg = rig.last()
    first = (time.monotonic_ns() - rig.born_ns) / 1e9
    with Image.open(io.BytesIO(jpeg)) as picture:
        picture.load()
        size = manifest.frame_width, manifest.frame_height
        context.found.check(f"{name}: the first frame is a picture", picture.size == size)
    graphs = (rig.expect("graphs")["ns"] - rig.born_ns) / 1e9
    row = {"first_frame_s": round(first, 2), "all_graphs_s": round(graphs, 2)}
    context.found.value(name, "start", value=row)


def _memory(context: Context, rig: Rig, name: str, further: Path) -> None:
    before = rig.settle(20)
    after = rig.ask(do="load", name="further", path=str(further))
    rows = {
        "before_mb": before["used"] >> 20,
        "after_mb": after["used"] >> 20,
        "of it image halves": (after["halves"] - before["halves"]) >> 20,
    }
    caches = after["halves"] - before["halves"]
    for kind in ("faces", "audio features"):
        caches += after["caches"][kind] - before["caches"][kind]
    rows["further_avatar_mb"] = (after["used"] - before["used"] - caches) >> 20
    context.found.value(name, "memory", value=rows)


def _single(rig: Rig, rng: np.random.Generator, speaker: Speaker) -> float:
    """Milliseconds from the last sample that a frame needs to its JPEG, on an engine at rest."""
    jobs: list[tuple[Job, F32]] = []
    while not jobs:
        begun = time.perf_counter()
        speaker.hear()
        jobs = list(speaker.jobs())
    for job, pcm in jobs:
        rig.put(job, pcm)
    for _ in jobs:
        if rig.take(PATIENCE_S) is None:
            raise RuntimeError("no answer")
    taken = (time.perf_counter() - begun) * 1e3
    time.sleep(float(rng.uniform(0.005, 0.02)))
    return taken


def _closed(rig: Rig, speakers: list[Speaker], batch: int, seconds: float) -> dict[str, float]:
    jobs = jobs_of(speakers, max(2, int(500 * seconds)))
    times, frames, begun = [], 0, time.perf_counter()
    for at in range(0, len(jobs) - batch + 1, batch):
        sent = time.perf_counter()
        for job, pcm in jobs[at : at + batch]:
            rig.put(job, pcm)
        for _ in range(batch):
            if rig.take(PATIENCE_S) is None:
                raise RuntimeError("no answer")
            times.append((time.perf_counter() - sent) * 1e3)
        frames += batch
        if time.perf_counter() - begun > seconds:
            break
    taken = time.perf_counter() - begun
    return {"frames_per_s": round(frames / taken, 1), **spread(times), "frames": frames}


def _free(context: Context, rig: Rig, speakers: list[Speaker], count: int) -> dict[str, float]:
    jobs = jobs_of(speakers, -(-count // len(speakers)))[:count]
    deep, sent, come, size = min(FREE_DEEP, count), 0, 0, 0
    cpu, begun = os.times(), time.perf_counter()
    with busy_share(context.dry) as busy:
        while come < count:
            while sent < count and sent - come < deep:
                rig.put(*jobs[sent])
                sent += 1
            taken = rig.take(PATIENCE_S)
            if taken is None:
                raise RuntimeError("no answer")
            come, size = come + 1, size + taken[1]
        seconds = time.perf_counter() - begun
    now = os.times()
    feeding = (now.user + now.system - cpu.user - cpu.system) / seconds
    row = {
        "frames_per_s": round(count / seconds, 1),
        "frames": count,
        "jpeg_kb": round(size / count / 1000, 1),
        "feeding_process_busy": round(feeding, 2),
    }
    return row | ({"gpu_busy_percent": busy[0].mean} if busy else {})
