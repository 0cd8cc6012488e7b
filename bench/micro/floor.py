# SPDX-License-Identifier: Apache-2.0
"""The least that a frame's networks can take here: their multiply-adds over this machine's peak.

    python bench/micro/floor.py [--out FILE]

Counts the multiply-adds of the convolutions of the demo avatar and of one of the reference's size,
from the graphs in their packages, and measures how many a second a matrix product reaches with all
processors (numpy, float32). What a frame takes in the engine is in docs/performance.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.operations import operations
from lipsync_fast.benchmark.reference import reference_networks, write_reference_avatar

NETWORKS = "audio_encoder", "image", "decoder"
SIDE = 2048


def multiply_adds(model: bytes) -> float:
    """Millions, of all convolutions, for one frame."""
    return sum(op.multiply_adds for op in operations(model) if op.kind == "Conv") / 1e6


def peak() -> float:
    """Thousand millions of multiply-adds a second, all processors, median of ten."""
    a, b = (np.random.default_rng(k).random((SIDE, SIDE), np.float32) for k in range(2))
    out, took = np.empty_like(a), []
    for _ in range(11):
        begun = time.perf_counter()
        np.matmul(a, b, out=out)
        took.append(time.perf_counter() - begun)
    return SIDE**3 / statistics.median(took[1:]) / 1e9


def main() -> None:
    """Count, measure and print."""
    args = program.options(__doc__, out=None)
    found, speed = {}, peak()
    with tempfile.TemporaryDirectory() as folder:
        reference = write_reference_avatar(Path(folder) / "x", reference_networks(), frames=2)
        for name, path in (("demo", AvatarLibrary().find("demo")), ("reference", reference)):
            with AvatarPackage.open(path) as package:
                counts = {n: round(multiply_adds(bytes(package.model(n))), 1) for n in NETWORKS}
            # The image half is cached; each frame needs one new audio vector.
            each = counts["decoder"] + counts["audio_encoder"]
            found[name] = counts | {"a_frame": round(each, 1), "floor_ms": round(each / speed, 2)}
            print(f"{name}: {found[name]}")
    print(f"peak: {speed:.0f} thousand million multiply-adds a second, all processors")
    program.keep(args.out, peak=round(speed, 1), millions=found)


if __name__ == "__main__":
    main()
