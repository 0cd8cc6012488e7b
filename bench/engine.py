# SPDX-License-Identifier: Apache-2.0
"""Where an engine's time goes: the parts of a frame, and a start.

    python bench/engine.py [--avatar demo] [--runs 40] [--starts 5]

Times of the parts are processor time on one thread: median of the runs, and least. Starts are wall
time from the process's birth to its messages, and the first frame's way through the rings.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.benchmark import program
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends import RegionJob, create_backend
from lipsync_fast.engine.backends.cpu import CpuBackend
from lipsync_fast.engine.process import keep_memory
from lipsync_fast.engine.splice import FrameEncoder, Variant
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from engines import Host, jobs_of, noise

from lipsync_fast.ipc.control import Hello, Ready


def timed(what: str, act: Callable[[], object], runs: int) -> None:
    act()
    spent = []
    for _ in range(runs):
        begun = time.process_time()
        act()
        spent.append((time.process_time() - begun) * 1e3)
    print(f"{what:44s} {median(spent):8.2f} ms   least {min(spent):8.2f}")


def parts(path: Path, runs: int) -> None:
    backend = create_backend("cpu", 1, live=True)
    assert isinstance(backend, CpuBackend)
    served, encoder = RegisteredAvatar.open(backend, path), FrameEncoder()
    package, avatar = served.package, served.loaded
    m = package.manifest
    own, small = Variant(m.jpeg.quality), Variant(m.jpeg.quality, m.frame_width // 2)
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((1, 16, 80)).astype(np.float32)
    block = rng.standard_normal((16, 512)).astype(np.float32)
    packet = xmp_packet(m.synthetic)

    def pixels(variant: Variant) -> tuple[np.ndarray, np.ndarray]:
        job = RegionJob(avatar, 0, block, part=encoder.part(package, 0, variant))
        part = backend.submit([job], lambda _, image: image)[0].result()
        whole = backend.submit([RegionJob(avatar, 0, block)], lambda _, image: image)[0].result()
        return part, whole

    part, whole = pixels(own)
    little, _ = pixels(small)
    timed("audio features, one vector", lambda: backend.features(avatar, mel), runs)
    timed(
        "network and compose, all cached",
        lambda: backend.submit(
            [RegionJob(avatar, 0, block, part=encoder.part(package, 0, own))], lambda _, i: i
        )[0].result(),
        runs,
    )
    timed("splice", lambda: encoder.frame(package, 0, own, part), runs)
    timed(
        "the whole frame encoded instead",
        lambda: jpeg_with_xmp(encode_frame(whole, m.jpeg), packet),
        runs,
    )
    timed("splice of half the width", lambda: encoder.frame(package, 0, small, little), runs)
    timed("own frame", lambda: encoder.original(package, 0, own), runs)
    timed(
        "once for each of the avatar's frames: encoder",
        lambda: (encoder.forget(package), encoder.prepare(package, 0)),
        runs // 4 + 1,
    )
    rect = package.rect(0)
    timed(
        "once for each of the avatar's frames: backend",
        lambda: (backend.unload(avatar), backend.warm(avatar, [(0, rect)])),
        runs // 4 + 1,
    )
    backend.close()
    package.close()


def starts(path: Path, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder) / "control")
        seen: dict[str, list[float]] = {"hello": [], "ready": [], "first frame": [], "a job": []}
        capacity = []
        try:
            for _ in range(count):
                born = time.perf_counter()
                engine = host.start({"demo": str(path)}, threads=None)
                host.expect(engine, Hello)
                seen["hello"].append(time.perf_counter() - born)
                capacity.append(host.expect(engine, Ready).capacity)
                seen["ready"].append(time.perf_counter() - born)
                engine.connect()
                from lipsync_fast.avatars.package import AvatarPackage

                with AvatarPackage.open(path) as package:
                    m = package.manifest
                sent = time.perf_counter()
                job = jobs_of(noise(0.5), m.audio, m.avatar_frame, avatar="demo")[8]
                engine.submit(*job)
                engine.answer()
                seen["first frame"].append(time.perf_counter() - born)
                seen["a job"].append(time.perf_counter() - sent)
                engine.kill()
        finally:
            host.close()
    for what, spent in seen.items():
        print(f"{what:44s} {median(spent) * 1e3:8.0f} ms   least {min(spent) * 1e3:8.0f}")
    print(f"{'capacity':44s} {median(capacity):8.1f} frames/s")


def main() -> None:
    told = program.options(__doc__, avatar="demo", runs=40, starts=5)
    path = AvatarLibrary().find(told.avatar)
    starts(path, told.starts)
    keep_memory()
    parts(path, told.runs)


if __name__ == "__main__":
    main()
