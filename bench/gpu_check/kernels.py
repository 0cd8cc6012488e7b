# SPDX-License-Identifier: Apache-2.0
"""How long each kernel and network takes, and the floor it stands on.

A kernel's floor: the fewest bytes it must move over the copy bandwidth of this run. A network's:
its operations over the matrix rate of this run. Inputs are random, several sets in turn, and the
cache holds something else before each timed launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu_check.context import Context
from gpu_check.findings import CannotRunError
from gpu_check.floors import Floors
from gpu_check.samples import (
    DTYPES,
    Composition,
    Pictures,
    Windows,
    generator,
    smooth,
)
from gpu_check.target import Target
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.geometry import Rect

BATCHES = (1, 16, 64)
SETS = 4
SIDE, PART = 328, 352
"""Sides of a crop and of a part, in pixels: the reference's avatar at 1280 x 720."""
SIZES = (1, 2, 4, 8, 16, 32, 64)


def main(context: Context) -> None:
    """Time everything."""
    target, floors = Target(context.dry, exact=False), Floors(context.work)
    if not context.dry and floors.moving(1) is None:
        context.found.fact("floors", "not measured: times stand alone")
    batches = (1,) if context.dry else BATCHES
    sets = 1 if context.dry else SETS
    for name, bind in (("mel", mel), ("region input", region_input), ("compose", composing),
                       ("jpeg", coding)):  # fmt: skip
        for batch in batches:
            with context.found.attempt(f"{name}, batch of {batch}"):
                made = [bind(target, batch) for _ in range(sets)]
                timed = target.timed([run for run, _ in made])
                row = timed.row(floors.moving(made[0][1]))
                context.found.value("kernels", f"{name} x {batch}", value=row)
                context.found.check(f"{name}, batch of {batch}, runs", True)
                del made
    with context.found.attempt("networks"):
        networks(context, target, floors)


def once(context: Context) -> None:
    """A launch of each kernel at the largest batch, for a profiler."""
    target = Target(context.dry)
    for bind in (mel, region_input, composing, coding):
        run, _ = bind(target, 1 if context.dry else BATCHES[-1])
        run()
        target.wait()


Bound = tuple[Callable[[], object], float]
"""A launch, and the bytes that it must move."""


def mel(target: Target, batch: int) -> Bound:
    """A new vector's window for each frame."""
    windows = Windows.random(generator(), batch)
    run = windows.bind(target, "fp16")
    seen = sum(min(o + 3800, high) - low for o, low, high, _ in windows.table.tolist())
    return run, 2 * seen + windows.out.nbytes


def region_input(target: Target, batch: int) -> Bound:
    """Crops of the reference's size."""
    rng, region = generator(), SIDE - 2 * REGION_BORDER
    held = [target.put(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(batch)]
    addresses = np.array([crop.data_ptr() for crop in held], np.int64)
    out = torch.empty(batch, 6, region, region, dtype=torch.float16, device=target.where)
    out = out.contiguous(memory_format=torch.channels_last)

    def run(held: Any = held) -> None:
        target.kernels.region_input(addresses, REGION_BORDER, out, target.stream)

    return run, batch * 3 * region * region + out.nbytes


def composing(target: Target, batch: int) -> Bound:
    """Pictures of the reference's size: read the planes, the crop's border and the part; write."""
    rng, region = generator(), SIDE - 2 * REGION_BORDER
    jobs = []
    for _ in range(batch):
        planes = rng.random((3, region, region), np.float32)
        crop = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        pixels = rng.integers(0, 256, (PART, PART, 3), np.uint8)
        keep = (rng.random((SIDE, SIDE)) < 0.2).astype(np.uint8)
        rect = Rect(8, 8, SIDE, SIDE)
        corner = (REGION_BORDER, REGION_BORDER)
        jobs.append(Composition(planes, crop, corner, pixels, rect, keep, 1.0, "fp32", 0))
    table = np.array([job.row(target) for job in jobs], np.int64)
    border = SIDE * SIDE - region * region
    each = 12 * region * region + 3 * border + SIDE * SIDE + 2 * 3 * PART * PART

    def run(jobs: Any = jobs) -> None:
        target.kernels.compose(table, target.stream)

    return run, batch * each


def coding(target: Target, batch: int) -> Bound:
    """Pictures as pictures are, the size of what changes in a frame."""
    rng = generator()
    pictures = Pictures(target, [(smooth(rng, 320, 320), 85, 4) for _ in range(batch)])

    def run() -> None:
        pictures.code()
        pictures.gather()

    run()
    coded = sum(map(len, pictures.slots()))
    return run, batch * 3 * 320 * 320 + 4 * coded


# ---------------------------------------------------------------- networks
def networks(context: Context, target: Target, floors: Floors) -> None:
    """The reference's networks, as captured graphs of each size."""
    from lipsync_fast.engine.backends.cuda.avatar import HostNets, Shapes
    from lipsync_fast.engine.backends.cuda.nets import on_device

    folder = context.avatars / ("tiny" if context.dry else "reference")
    if not folder.is_dir():
        raise CannotRunError("needs the part avatars")
    with AvatarPackage.open(folder) as package:
        shapes = Shapes.of(package)
        for kind in ("fp32",) if context.dry else ("fp16", "bf16"):
            nets = HostNets.read(package, shapes)
            given: dict[str, dict[str, tuple[int, ...]]] = {
                "audio_encoder": {"mel": (1, 80, 16)},
                "image": {"image": (6, shapes.region, shapes.region)},
                "decoder": {**dict(shapes.levels), "audio": (32, 16, 16)},
            }
            for name, inputs in given.items():
                net = on_device(getattr(nets, name), target.device, DTYPES[kind])
                for size in (1,) if context.dry else SIZES if kind == "fp16" else SIZES[-1:]:
                    with context.found.attempt(f"{name}, {kind}, batch of {size}"):
                        row = _network(target, floors, net, inputs, size, kind)
                        context.found.value("networks", f"{name} {kind} x {size}", value=row)


def _network(
    target: Target,
    floors: Floors,
    net: Any,
    shapes: dict[str, tuple[int, ...]],
    size: int,
    kind: str,
) -> dict[str, float]:
    from torch.utils.flop_counter import FlopCounterMode

    dtype = DTYPES[kind]
    sets = [
        [_random(target, (size, *shapes[name]), dtype) for name in net.inputs]
        for _ in range(1 if target.dry else 2)
    ]
    statics = [value.clone() for value in sets[0]]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(*statics)
    out: list[torch.Tensor] = []

    def forward() -> None:
        with torch.inference_mode():
            out[:] = net(*statics)

    replay = target.device.capture(forward, forward)
    for values in sets:  # fresh numbers are in place before the replays; copying is not timed
        for static, value in zip(statics, values, strict=True):
            static.copy_(value)
    timed = target.timed([replay], 30)
    operations = float(counter.get_total_flops())
    row = timed.row(floors.computing(operations, "bf16" if kind == "bf16" else "fp16"))
    row["GFLOP"] = round(operations / 1e9, 2)
    row["us_a_frame"] = round(timed.median_us / size, 2)
    row["TFLOP_per_s"] = round(operations / timed.median_us / 1e6, 1)
    if not all(bool(torch.isfinite(value).all()) for value in out):
        raise ValueError("the network made numbers that are none")
    return row


def _random(target: Target, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    made = torch.rand(shape, device=target.where).to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made
