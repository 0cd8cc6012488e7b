# SPDX-License-Identifier: Apache-2.0
"""Predict how long a GPU takes for batches, from counted multiply-adds and bytes.

    python bench/predict.py [--out bench/results/simulate/predicted.json]

A prediction, not a measurement: nothing of this has run on a GPU. Each operation of the avatar's
graphs takes as long as its multiply-adds at a share of the matrix rate, or its tensors' bytes at a
share of the copy rate, or the least time of a kernel in a captured graph, whichever is most. Sums
over the operations of the decoder (its image half is kept in device memory, and read once) and of
one audio vector a frame; then the kernels before and behind, by their bytes. The rates are those of
one H200, measured elsewhere; the shares are assumptions and are written into the result. To judge
how much hangs on them, a careful and a hopeful set are predicted too.

Needs torch and onnx (the extra ``bench``), and no GPU.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.operations import Operation, operations
from lipsync_fast.benchmark.reference import reference_networks, write_reference_avatar
from lipsync_fast.engine.backends.cuda.graphs import SIZES

OUT = Path(__file__).resolve().parent / "results" / "simulate" / "predicted.json"
SIDE = 328
"""Side of the square that a region lies in, and, as it is assumed, of its place in the frame."""
JPEG_BYTES = 15_000
"""Bytes of a region's coded segments (the demo avatar's are some 12 to 15 kB)."""


@dataclass(frozen=True)
class Assumed:
    """What a prediction rests on.

    Attributes:
        matrix_flops: of dense products in 16 bits, measured on one H200.
        copy_bytes_per_s: read and written, measured on one H200.
        matrix_share: of ``matrix_flops`` that these small convolutions reach.
        copy_share: of ``copy_bytes_per_s`` that their other operations reach.
        kernel_us: the least that a kernel in a captured graph takes.
        link_bytes_per_s: from the device to the host.
        host_us_per_frame: of the engine's one loop and of Python's lock: 46 measured for the loop
            (results/micro/batcher.json, another processor), the rest assumed for the backend.
        wake_us: from the end of a batch to the first answer in the ring: event, threads, splice.
    """

    matrix_flops: float = 790e12
    copy_bytes_per_s: float = 4.3e12
    matrix_share: float = 0.27
    copy_share: float = 0.6
    kernel_us: float = 2.0
    link_bytes_per_s: float = 20e9
    host_us_per_frame: float = 100.0
    wake_us: float = 300.0


SETS = {
    "careful": Assumed(matrix_share=0.12, copy_share=0.35, kernel_us=3.5, host_us_per_frame=200.0),
    "expected": Assumed(),
    "hopeful": Assumed(matrix_share=0.35, copy_share=0.8, kernel_us=1.5, host_us_per_frame=60.0),
}


def network_us(found: list[Operation], batch: int, assumed: Assumed, width: int = 2) -> float:
    """Microseconds of a graph for a batch; ``width``: bytes of a number."""
    total = 0.0
    for op in found:
        compute = 2 * batch * op.multiply_adds / (assumed.matrix_flops * assumed.matrix_share)
        moved = width * (batch * op.elements + op.weights)
        copy = moved / (assumed.copy_bytes_per_s * assumed.copy_share)
        total += max(compute * 1e6, copy * 1e6, assumed.kernel_us)
    return total


def around_us(batch: int, assumed: Assumed) -> float:
    """Mel, gathers, compose, JPEG and the copy of coded bytes: eight kernels, by their bytes."""
    mel = 16 * 800 * 2
    compose = 2 * 3 * 320 * 320 + 6 * 3 * SIDE * SIDE
    jpeg = 3 * SIDE * SIDE * 3 + 4 * JPEG_BYTES
    copied = batch * (mel + compose + jpeg) / (assumed.copy_bytes_per_s * assumed.copy_share)
    return 8 * assumed.kernel_us + 1e6 * (copied + batch * JPEG_BYTES / assumed.link_bytes_per_s)


def predicted(networks: dict[str, list[Operation]], assumed: Assumed) -> dict[str, Any]:
    """Service times in the form that simulate.py reads."""
    times = {
        str(n): sum(network_us(found, n, assumed) for found in networks.values())
        + around_us(n, assumed)
        for n in SIZES
    }
    return {
        "batch_ms": {n: round(us / 1e3, 4) for n, us in times.items()},
        "host_us_per_frame": assumed.host_us_per_frame,
        "wake_us": assumed.wake_us,
        "assumed": asdict(assumed),
    }


def main() -> None:
    """Count, predict, write."""
    args = program.options(__doc__, out=OUT)
    with tempfile.TemporaryDirectory() as folder:
        path = write_reference_avatar(Path(folder) / "x", reference_networks(), frames=2)
        with AvatarPackage.open(path) as package:
            networks = {
                name: operations(bytes(package.model(name)))
                for name in ("decoder", "audio_encoder")
            }
    counted = {
        name: {
            "operations": len(found),
            "million_multiply_adds": round(sum(op.multiply_adds for op in found) / 1e6, 1),
            "megabytes_moved_fp16": round(2 * sum(op.elements for op in found) / 1e6, 1),
        }
        for name, found in networks.items()
    }
    sets = {name: predicted(networks, assumed) for name, assumed in SETS.items()}
    for name, times in sets.items():
        rate = max(int(n) / ms * 1e3 for n, ms in times["batch_ms"].items())
        print(f"{name}: {times['batch_ms']} ms a batch, {rate:.0f} frames/s of the device alone")
    program.keep(
        args.out,
        kind="predicted",
        device="one NVIDIA H200",
        network="the reference's, region of 320, fp16",
        counted=counted,
        times=sets,
    )


if __name__ == "__main__":
    main()
