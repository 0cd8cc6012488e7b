# SPDX-License-Identifier: Apache-2.0
"""Every stage against what it must be, from the sound on, so that the first wrong one is named.

mel                 golden data of the reference, and the CPU's rows of random sounds
region input        the CPU's bytes
networks            golden data of the reference, in float32, float16 and bfloat16
compose, jpeg       the CPU's bytes, and those of the same kernels emulated on the host
whole frames        golden data of the reference; and in grey levels, what a precision costs
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_check.context import Context
from gpu_check.findings import CannotRunError
from gpu_check.samples import (
    DTYPES,
    Composition,
    Pictures,
    Windows,
    compose,
    generator,
    smooth,
)
from gpu_check.target import Target, grey, relative
from lipsync_fast import _native
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.families.synctalk2d import REGION_BORDER

MEL_TOLERANCE = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3.2e-2}
"""Tolerance for values up to 4: the rounding of the type itself comes on top."""
RELATIVE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}
"""Tolerance for the networks' outputs, ‖out - ref‖ / ‖ref‖."""


def main(context: Context) -> None:
    """All stages."""
    target, found = Target(context.dry), context.found
    steps: list[tuple[str, Callable[[Context, Target], None]]] = [
        ("mel", mel),
        ("region input", region_input),
        ("compose", composing),
        ("jpeg", coding),
        ("networks", networks),
    ]
    with found.attempt("the backend"):  # without it, kernels can be checked all the same
        from gpu_check import frames

        steps += [
            ("whole frames", frames.whole),
            ("coded parts", frames.coded),
            ("batches", frames.batches),
            ("heard", frames.heard),
            ("precision", frames.precision),
        ]
    for name, step in steps:
        with found.attempt(name):
            step(context, target)
            target.wait()


def kernels_only(context: Context) -> None:
    """The kernels on small inputs, for a checker that makes them slow."""
    target = Target(context.dry)
    rng = generator()
    mel_of_random(context, target, Windows.random(rng, 3), ("fp32", "bf16"))
    region_input(context, target)
    jobs = [Composition.random(rng, 40, 48, 64) for _ in range(6)]
    _same_compositions(context, target, jobs)
    coded = [(smooth(rng, 40, 72), 90, 2), (smooth(rng, 17, 33), 75, 64)]
    _same_segments(context, Pictures(target, coded))


# ---------------------------------------------------------------- kernels
def mel(context: Context, target: Target) -> None:
    """Golden speech, and random sounds in all types."""
    from golden import load

    from lipsync_fast.audio.windows import feature_count, first_row

    golden = load("audio")
    pcm, rows = golden["pcm16k"], golden["mel"]
    starts = [min(first_row(j), len(rows) - 16) for j in range(feature_count(len(rows)))]
    starts = starts[:40] if context.dry else starts
    begins = [200 * start - 400 for start in starts]
    table = [(b, max(0, b), len(pcm), int(b > 0)) for b in begins]
    expected = np.stack([rows[s : s + 16].T for s in starts])
    made = Windows(pcm.astype(np.int16), np.array(table, np.int32), expected)
    out = made.run(target).float().cpu().numpy()[:, 0]
    _within(context, "mel, golden speech", out, expected, MEL_TOLERANCE["fp32"])
    windows = Windows.random(generator(), 4 if context.dry else 200)
    mel_of_random(context, target, windows, tuple(DTYPES))
    if not context.dry:
        with context.found.attempt("arrays of CuPy"):
            _with_cupy(context, target, windows)


def _with_cupy(context: Context, target: Target, windows: Windows) -> None:
    """The kernels take any array of the device."""
    if importlib.util.find_spec("cupy") is None:
        raise CannotRunError("CuPy is not installed")
    cupy = importlib.import_module("cupy")
    out = cupy.full((len(windows.table), 1, 80, 16), cupy.nan, cupy.float32)
    pcm, table = cupy.asarray(windows.pcm), cupy.asarray(windows.table)
    cupy.cuda.get_current_stream().synchronize()
    target.kernels.mel(pcm, table, out, target.stream)
    target.wait()
    made = cupy.asnumpy(out)[:, 0]
    _within(context, "mel, arrays of CuPy", made, windows.expected, MEL_TOLERANCE["fp32"])


def mel_of_random(
    context: Context, target: Target, windows: Windows, kinds: tuple[str, ...]
) -> None:
    """Against the CPU's rows."""
    for kind in kinds:
        out = windows.run(target, kind).float().cpu().numpy()[:, 0]
        _within(context, f"mel, {kind}", out, windows.expected, MEL_TOLERANCE[kind])


def _within(
    context: Context, name: str, out: NDArray[Any], ref: NDArray[Any], tolerance: float
) -> None:
    worst = float(np.nan_to_num(np.abs(out.astype(np.float64) - ref), nan=np.inf).max())
    context.found.value("differences", name, value={"worst": worst, "relative": relative(out, ref)})
    context.found.check(name, worst <= tolerance, f"worst {worst:.2e}, at most {tolerance:.0e}")


def region_input(context: Context, target: Target) -> None:
    """The network's input of random crops, both layouts, all types, both families' masks."""
    rng, count, region = generator(), 3, 64
    for border, half in ((REGION_BORDER, False), (0, True)):
        side = region + 2 * border
        crops = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
        held = [target.put(crop) for crop in crops]
        addresses = np.array([crop.data_ptr() for crop in held], np.int64)
        ref = torch.from_numpy(np.stack([_native.region_input(c, border, half) for c in crops]))
        mask = "half" if half else "mouth"
        for kind, dtype in DTYPES.items():
            for layout in (torch.contiguous_format, torch.channels_last):
                out = torch.full((count, 6, region, region), float("nan"), dtype=dtype)
                out = out.to(target.where, memory_format=layout)
                target.kernels.region_input(addresses, border, out, target.stream, half)
                target.wait()
                same = torch.equal(out.cpu(), ref.to(dtype))
                words = "channels last" if layout is torch.channels_last else "channels first"
                context.found.check(f"region input, {mask}, {kind}, {words}", same)


def composing(context: Context, target: Target) -> None:
    """Random pictures of the sizes that avatars have."""
    rng = generator()
    few = context.dry
    jobs = [Composition.random(rng, 40, 48, 64) for _ in range(4 if few else 40)]
    jobs += [Composition.random(rng, 328, 300, 340) for _ in range(1 if few else 12)]
    jobs += [Composition.random(rng, 264, 264, 304) for _ in range(1 if few else 12)]
    _same_compositions(context, target, jobs)


def _same_compositions(context: Context, target: Target, jobs: list[Composition]) -> None:
    made = compose(target, jobs)
    wrong = [k for k, (out, job) in enumerate(zip(made, jobs, strict=True))
             if not np.array_equal(out, job.expected())]  # fmt: skip
    detail = "identical bytes" if not wrong else _job_words(jobs[wrong[0]], made[wrong[0]])
    name = f"compose, {len(jobs)} pictures, as the CPU's"
    context.found.check(name, not wrong, f"{len(wrong)} wrong, {detail}" if wrong else detail)
    if not target.dry:
        twins = compose(_host(target), jobs)
        same = all(np.array_equal(a, b) for a, b in zip(made, twins, strict=True))
        context.found.check("compose, as emulated", same)


def _job_words(job: Composition, out: NDArray[np.uint8]) -> str:
    expected = job.expected()
    where = np.argwhere((out != expected).any(-1))
    worst = grey(out, expected)
    return (
        f"first at {where[0].tolist()} of {len(where)} pixels, {worst}; mode {job.mode}, share"
        f" {job.share}, {job.kind}, keep {job.keep is not None}, rect {job.rect}"
    )


def _host(target: Target) -> Target:
    """The same with the host in the device's place."""
    host = Target(dry=True)
    host.kernels = target.emulated
    return host


def coding(context: Context, target: Target) -> None:
    """Random pictures, smooth ones and noise, odd sizes, long and short intervals."""
    rng = generator()
    sizes = [(16, 16), (17, 33), (171, 262)] + ([] if context.dry else [(320, 320), (320, 336)])
    wanted = []
    for height, width in sizes:
        for interval in (1, 4, 64):
            quality = int(rng.integers(1, 101))
            wanted.append((smooth(rng, height, width), quality, interval))
            wanted.append((rng.integers(0, 256, (height, width, 3), np.uint8), 92, interval))
    black_and_white = rng.integers(0, 2, (48, 64, 3), np.uint8) * np.uint8(255)
    _same_segments(context, Pictures(target, [*wanted, (black_and_white, 100, 3)]))


def _same_segments(context: Context, pictures: Pictures) -> None:
    pictures.code()
    expected, made = pictures.expected(), pictures.slots()
    wrong = [k for k, (a, b) in enumerate(zip(made, expected, strict=True)) if a != b]
    words = f"{len(wrong)} of {len(made)} segments differ, first {wrong[:1]}" if wrong else ""
    context.found.check(f"jpeg, {len(made)} segments, as libjpeg-turbo's", not wrong, words)
    pictures.gather()
    context.found.check("jpeg, packed segments", pictures.gathered() == made)
    if not pictures.target.dry:
        twin = Pictures(_host(pictures.target), pictures.wanted)
        twin.code()
        context.found.check("jpeg, as emulated", twin.slots() == made)


# ---------------------------------------------------------------- networks
def networks(context: Context, target: Target) -> None:
    """The golden weights' networks, as the backend runs them, against the reference's outputs."""
    from golden import load

    from lipsync_fast.engine.backends.cuda.graph_net import GraphNet
    from lipsync_fast.engine.backends.cuda.nets import on_device

    folder = context.avatars / "golden"
    if not folder.is_dir():
        raise CannotRunError("needs the part avatars")
    golden, r = load("networks"), np.random.RandomState(1)
    image = r.rand(1, 6, 320, 320).astype(np.float32)
    audio = r.standard_normal((1, 32, 16, 16)).astype(np.float32)
    windows = r.uniform(-4, 4, (3, 1, 80, 16)).astype(np.float32)
    with AvatarPackage.open(folder) as package:
        for kind, dtype in DTYPES.items():
            nets = {
                name: on_device(GraphNet(package.model(name)), target.device, dtype)
                for name in ("audio_encoder", "image", "decoder")
            }
            given = [target.put(v).to(dtype) for v in (image, audio, windows)]
            with torch.inference_mode():
                vectors = nets["audio_encoder"](given[2])[0]
                made = nets["image"](given[0].contiguous(memory_format=torch.channels_last))
                levels = dict(zip(nets["image"].outputs, made, strict=True))
                inputs = [given[1] if n == "audio" else levels[n] for n in nets["decoder"].inputs]
                region = nets["decoder"](*inputs)[0]
            for name, out in (("encoder_out", vectors), ("unet_out", region)):
                own, ref = out.float().cpu().numpy(), golden[name].astype(np.float32)
                error = relative(own, ref)
                row: dict[str, float] = {"relative": error}
                if name == "unet_out":
                    row |= grey(*(np.clip(v * 255, 0, 255).astype(np.uint8) for v in (own, ref)))
                context.found.value("networks", f"{name} {kind}", value=row)
                words = f"‖out - ref‖ / ‖ref‖ {error:.2e}, at most {RELATIVE[kind]:.0e}"
                context.found.check(f"network, {name}, {kind}", error <= RELATIVE[kind], words)
