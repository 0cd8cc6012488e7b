# SPDX-License-Identifier: Apache-2.0
"""Parts of a frame against the plain way of making them: mel rows, audio vectors, JPEG.

    python bench/micro/parts.py [--runs 60] [--out FILE]

Each pair runs in turn, round after round, on one thread; medians of processor time. Floors: the mel
rows' real transforms at 2.5 N log2 N operations each, and the JPEG's changed pixels alone (the
share of the picture that the mouth may touch).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import numpy as np

from lipsync_fast import _native
from lipsync_fast.audio import mel_numpy
from lipsync_fast.audio.windows import BlockCache, block_starts, samples_seen
from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.speech import shipped_recording
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.cpu import CpuBackend
from lipsync_fast.engine.splice import FrameEncoder, Variant

Pair = dict[str, Callable[[], object]]


def mel() -> tuple[Pair, str]:
    """A second of sound to mel rows: the native stream, and its numpy twin."""
    pcm = (shipped_recording(1.0) / np.float32(32768)).astype(np.float32)

    def native() -> object:
        stream = _native.MelStream()
        return stream.push(pcm), stream.finish()

    operations = 81 * 2.5 * 800 * math.log2(800)
    return {"native": native, "numpy": lambda: mel_numpy.mel(pcm)}, (
        f"floor: {operations / 1e6:.1f} million operations in the transforms"
    )


def vectors(served: RegisteredAvatar, backend: CpuBackend) -> tuple[Pair, str]:
    """The audio block of the next frame of a sound: one new vector or two, against all sixteen."""
    window = served.package.manifest.audio
    pcm = (shipped_recording(4.0) / np.float32(32768)).astype(np.float32)
    kept = BlockCache(lambda mel: backend.features(served.loaded, mel))
    at = [0]

    def block(cache: BlockCache) -> object:
        at[0] = at[0] % 60 + 1
        starts = block_starts(at[0], window, len(pcm))
        first, end = samples_seen(starts)
        return cache.block("sound", starts, pcm[first:end], first)

    def anew() -> object:
        return block(BlockCache(lambda mel: backend.features(served.loaded, mel)))

    return {"kept": lambda: block(kept), "anew": anew}, "floor: 1 new vector for each frame"


def jpeg(served: RegisteredAvatar) -> tuple[Pair, str]:
    """A frame's JPEG: the pieces that the mouth touches spliced in, against the whole picture."""
    package, encoder = served.package, FrameEncoder()
    variant = Variant(package.manifest.jpeg.quality)
    part = encoder.part(package, 0, variant)
    picture = package.picture(0)
    piece = picture[part.slices].copy()
    share = part.width * part.height / (picture.shape[0] * picture.shape[1])
    return {
        "spliced": lambda: encoder.frame(package, 0, variant, piece),
        "whole": lambda: encode_frame(picture, package.manifest.jpeg),
    }, f"floor: {share:.1%} of the pixels change"


def main() -> None:
    """Measure and print."""
    args = program.options(__doc__, runs=60, out=None)
    backend = CpuBackend(1, live=True)
    served = RegisteredAvatar.open(backend, AvatarLibrary().find("demo"))
    results: dict[str, dict[str, float | str]] = {}
    for name, (pair, floor) in {
        "mel rows of a second": mel(),
        "audio block of a frame": vectors(served, backend),
        "JPEG of a frame": jpeg(served),
    }.items():
        spent: dict[str, list[float]] = {way: [] for way in pair}
        for run in range(args.runs + 3):
            for way, act in pair.items():
                begun = time.thread_time_ns()
                act()
                if run >= 3:
                    spent[way].append((time.thread_time_ns() - begun) / 1e6)
        (ours, mine), (plain, theirs) = spent.items()
        ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
        results[name] = {
            f"{ours}_ms": round(statistics.median(mine), 3),
            f"{plain}_ms": round(statistics.median(theirs), 3),
            "ratio": round(ratio, 2),
            "floor": floor,
        }
        print(
            f"{name:24s} {ours} {statistics.median(mine):7.3f} ms, {plain} "
            f"{statistics.median(theirs):7.3f} ms: {ratio:5.1f}x   ({floor})"
        )
    program.keep(args.out, results=results)


if __name__ == "__main__":
    main()
