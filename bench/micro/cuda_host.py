# SPDX-License-Identifier: Apache-2.0
"""What the host does for a frame on a device: from ``submit`` to ``finish``, without the device.

    python bench/micro/cuda_host.py [--frames 512] [--rounds 5] [--profile] [--out FILE]

The CUDA backend runs with the host in a GPU's place; networks, kernels and what torch does with
memory of frames are replaced by nothing, so that what is left is Python's part: slots, tables,
descriptors, lanes, events, threads, futures; and the splicing of the frame's JPEG. Samples and
tables are copied once, as they would be into pinned memory. Live sounds of a session each: every
frame brings one new audio vector. Counted is processor time of all threads for each frame, and of
the interpreter that they share so the frames a second that one engine's Python could make at most.

Not counted: torch's calls on a device (some 30 for a batch, whatever its size), and the engine's
loop, which ``batcher.py`` measures. ``--profile``: of the calling thread, batches of 16, instead.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipsync_fast.audio.windows import block_starts, samples_seen
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.engine.backends.base import Coded, RegionJob, Sound
from lipsync_fast.engine.backends.cuda import batch as batch_module
from lipsync_fast.engine.backends.cuda.backend import CudaBackend
from lipsync_fast.engine.backends.cuda.device import HostDevice
from lipsync_fast.engine.splice import FrameEncoder, Variant, how_coded

SIZES = (1, 4, 16, 64)
SEGMENT = 150
"""Bytes of a coded segment, as the demo avatar has them."""


class Nothing:
    """Kernels that do nothing; every segment has the same size."""

    def __init__(self, kernels: Any) -> None:
        self.jpeg_slot_bytes, self.quant_tables = kernels.jpeg_slot_bytes, kernels.quant_tables

    def mel(self, *args: Any) -> None:
        pass

    region_input = compose = jpeg = mel

    def jpeg_gather(
        self, pictures: Any, out: Any, sizes: Any, packed: Any, offsets: Any, _: int
    ) -> None:
        torch.arange(0, SEGMENT * len(offsets), SEGMENT, dtype=torch.int32, out=offsets)


class Idle(HostDevice):
    """A device on which nothing takes time."""

    name = "idle"

    def __init__(self) -> None:
        super().__init__(64 << 30)
        self.kernels = Nothing(self.kernels)  # type: ignore[assignment]

    def capture(self, warm: Any, run: Any) -> Any:
        return lambda: None


def jobs_of(
    package: AvatarPackage, avatar: Any, encoder: FrameEncoder, sessions: int, frames: int
) -> list[list[tuple[RegionJob, int]]]:
    """Rounds of one frame of each session, with the pictures that they lie over."""
    m = package.manifest
    variant = Variant(m.jpeg.quality)
    how = how_coded(m, variant.quality)
    pcm = np.zeros(640 * (frames + 40), np.float32)
    rounds = []
    for frame in range(20, 20 + frames):
        starts = tuple(block_starts(frame, m.audio))
        first, end = samples_seen(starts)
        seen, index = pcm[first:end], frame % 5
        place = encoder.place(package, index, variant)
        rounds.append(
            [
                (
                    RegionJob(
                        avatar,
                        index,
                        None,
                        1.0,
                        place.part,
                        Sound(("front", session), starts, seen, first),
                        place.encode(how),
                    ),
                    index,
                )
                for session in range(sessions)
            ]
        )
    return rounds


def microseconds(path: Path, size: int, frames: int, profile: cProfile.Profile | None) -> float:
    """Processor time of a frame, in batches of that size."""
    with AvatarPackage.open(path) as package:
        backend, encoder = CudaBackend(Idle(), precision="fp32"), FrameEncoder()
        variant = Variant(package.manifest.jpeg.quality)
        avatar = backend.load(package)
        backend.settle(60)
        rounds = jobs_of(package, avatar, encoder, size, 10 + frames // size)

        def run(todo: list[list[tuple[RegionJob, int]]]) -> None:
            for jobs in todo:

                def finish(place: int, coded: Any, jobs: Any = jobs) -> bytes:
                    assert isinstance(coded, Coded)
                    return encoder.frame(package, jobs[place][1], variant, coded)

                futures: list[Future[bytes]] = backend.submit([job for job, _ in jobs], finish)
                for future in futures:
                    future.result()

        run(rounds[:10])
        begun, batches = time.process_time(), backend.launcher.batches
        if profile is not None:
            threading.setprofile(None)
            profile.enable()
        run(rounds[10:])
        if profile is not None:
            profile.disable()
        used = time.process_time() - begun
        made = len(rounds[10:]) * size
        assert backend.launcher.batches - batches == len(rounds[10:]), "one batch a round"
        backend.close()
    return used * 1e6 / made


def main() -> None:
    """Measure and print."""
    args = program.options(__doc__, frames=512, rounds=5, profile=False, out=None)
    torch.set_num_threads(1)
    batch_module.Batch._decode = _nothing  # type: ignore[method-assign]
    path = AvatarLibrary().find("demo")
    if args.profile:
        profile = cProfile.Profile()
        microseconds(path, 16, args.frames, profile)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(25)
        return
    spent: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(args.rounds):
        for size in SIZES:
            spent[size].append(microseconds(path, size, args.frames, None))
    results = {}
    for size, found in spent.items():
        each = statistics.median(found)
        results[f"batches of {size}"] = {
            "us_a_frame": round(each, 1),
            "least": round(min(found), 1),
        }
        print(f"batches of {size:2d}: {each:7.1f} us a frame, least {min(found):7.1f}")
    program.keep(args.out, results=results)


def _nothing(*args: Any) -> None:
    pass


if __name__ == "__main__":
    main()
