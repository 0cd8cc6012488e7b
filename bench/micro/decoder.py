# SPDX-License-Identifier: Apache-2.0
"""The decoder with native stages against ONNX Runtime alone, interleaved.

    python bench/micro/decoder.py [--network demo reference] [--threads 1 2] [--stages 1 2 3]
                                  [--kernels avx512 avx2] [--rounds 30]

In every round each variant makes as many frames at once as there are threads, each frame in one, as
the backend does it; the order changes from round to round. Given are the median processor time of
a frame, the median wall time of a round, and the median of the rounds' ratios to ONNX Runtime. On a
shared machine the ratio of processor times is what can be repeated.

Networks: the demo avatar's own, and the reference's size (width 32, region 320) with random
weights. The floor of the native stages is what their multiply-adds take at the rate of a matrix
product on this machine, and what their tensors take at the rate of a copy in memory.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the matrix product that the floor is measured with

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.engine.backends.decoder import SplitDecoder, split_decoder
from lipsync_fast.families.synctalk2d import AUDIO_SHAPE, level_shapes
from lipsync_fast.geometry import Rect


@dataclass(frozen=True)
class Network:
    """A decoder and what it is fed with."""

    name: str
    model: bytes
    width: int
    region: int
    window: Rect | None
    frames: list[dict[str, NDArray[np.float32]]]


def network(name: str) -> Network:
    """The demo avatar's decoder with its own image halves, or the reference's size."""
    rng = np.random.default_rng(1)

    def audio() -> NDArray[np.float32]:
        return 2 * rng.standard_normal((1, *AUDIO_SHAPE)).astype(np.float32)

    if name == "demo":
        with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
            m = package.manifest
            image = ort.InferenceSession(
                bytes(package.model("image")), providers=["CPUExecutionProvider"]
            )
            names = [o.name for o in image.get_outputs()]
            frames = []
            for k in range(8):
                crop = package.crop(k, package.picture(k), package.rect(k))
                made = image.run(names, {"image": _native.region_input(crop, 4)[None]})
                frames.append({**dict(zip(names, made, strict=True)), "audio": audio()})
            model = bytes(package.model("decoder"))
            return Network(name, model, m.width, m.region, m.window_rect, frames)
    import torch

    from lipsync_fast.models.export import export_unet
    from lipsync_fast.models.unet import UNet

    torch.manual_seed(1)
    frames = []
    for _ in range(8):
        levels = level_shapes(32, 320)
        made = {n: rng.standard_normal((1, *s)).astype(np.float32) for n, s in levels.items()}
        frames.append({**made, "audio": audio()})
    return Network(name, export_unet(UNet().eval())[1], 32, 320, None, frames)


class Variant:
    """One way to make a frame."""

    def __init__(self, net: Network, kernel: str | None, stages: int) -> None:
        self.name = "onnxruntime" if kernel is None else f"{kernel}, {stages} native"
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name("batch", 1)
        options.log_severity_level = 3
        self.split: SplitDecoder | None = None
        if kernel is not None:
            self.split = split_decoder(net.model, net.region, net.window, kernel, stages)
        model = net.model if self.split is None else self.split.head
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def head(self, frame: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        made: NDArray[np.float32] = self.session.run(None, {n: frame[n] for n in self.inputs})[0][0]
        return made

    def __call__(self, frame: dict[str, NDArray[np.float32]]) -> NDArray[np.uint8]:
        made = self.head(frame)
        return _native.region_output(made) if self.split is None else self.split.run(made, frame)


def compare(net: Network, variants: list[Variant], threads: int, rounds: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for k in range(rounds + 2):
            frames = [net.frames[(k * threads + i) % len(net.frames)] for i in range(threads)]
            turn = k % len(variants)
            for variant in variants[turn:] + variants[:turn]:
                wall, cpu = time.perf_counter(), time.process_time()
                list(pool.map(variant, frames))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if k >= 2:
                    variant.wall_s.append(wall)
                    variant.cpu_s.append(cpu / threads)
    first, others = variants[0], variants[1:]
    print(f"\n{net.name}, {threads} thread{'s' if threads > 1 else ''}")
    print(f"{'':22}{'processor':>10}{'wall':>8}   ratio of processor, wall time")
    for variant in variants:
        ratios = [
            median(a / b for a, b in zip(one, two, strict=True))
            for one, two in ((first.cpu_s, variant.cpu_s), (first.wall_s, variant.wall_s))
        ]
        print(
            f"{variant.name:22}{1e3 * median(variant.cpu_s):7.2f} ms"
            f"{1e3 * median(variant.wall_s):8.2f}   {ratios[0]:.2f}  {ratios[1]:.2f}"
        )
    worst, differ = 0, 0.0
    for frame in net.frames:
        expected = first(frame).astype(int)
        for variant in others:
            off = np.abs(variant(frame) - expected)
            worst, differ = max(worst, int(off.max())), max(differ, float((off > 0).mean()))
    print(f"pixels: {worst} grey level(s) apart at most, {differ:.4%} of values at most")
    for variant in variants:
        variant.wall_s.clear()
        variant.cpu_s.clear()


def least(act: Callable[[], object], times: int) -> float:
    """Least processor time of an act."""
    spent = []
    for _ in range(times):
        begun = time.process_time()
        act()
        spent.append(time.process_time() - begun)
    return min(spent)


def peak() -> tuple[float, float]:
    """Multiply-adds a second of a float32 matrix product, bytes a second of a copy; one thread."""
    a, b = (np.ones((1024, 1024), np.float32) for _ in range(2))
    product = 1024**3 / least(lambda: a @ b, 12)
    source, target = np.ones(32 << 20, np.uint8), np.ones(32 << 20, np.uint8)
    copied = 2 * source.nbytes / least(lambda: np.copyto(target, source), 12)
    return product, copied


def floor(net: Network, variants: list[Variant], rates: tuple[float, float]) -> None:
    """What the native stages take, and what they must take."""
    print(f"\n{net.name}, the native stages alone, one thread, least processor time")
    shapes = level_shapes(net.width, net.region, net.window)
    for variant in variants:
        if variant.split is None:
            continue
        split, count = variant.split, len(variant.split.stages)
        sums = amount = 0.0
        for k, stage in enumerate(split.stages):
            from_last = count - 1 - k
            last = from_last == 0
            side = net.region >> from_last
            low = net.width << max(0, from_last - 1)
            made = net.width // 2 if last else net.width << max(0, from_last - 2)
            hidden = 4 * low
            pixels = side * side
            if last and net.window is not None:
                pixels = net.window.width * net.window.height
            each = low * hidden / 4 + low * hidden + 9 * hidden + hidden * made
            each += made * 2 * made + 9 * 2 * made
            each += 3 * (3 * made) if last else 2 * made * made
            sums += pixels * each
            amount += 4 * math.prod(shapes[stage.skip]) + pixels * low + pixels * 4 * made
        joints = [variant.head(frame) for frame in net.frames]
        turns = iter(range(1 << 20))

        def act(
            split: SplitDecoder = split,
            joints: list[NDArray[np.float32]] = joints,
            turns: object = turns,
        ) -> None:
            k = next(turns) % len(joints)  # type: ignore[call-overload]
            split.run(joints[k], net.frames[k])

        spent = least(act, 24)
        needed, moved = sums / rates[0], amount / rates[1]
        print(
            f"{variant.name:22}{1e3 * spent:7.2f} ms; {sums / 1e6:.0f} M multiply-adds"
            f" {1e3 * needed:.2f} ms, {amount / 1e6:.1f} MB {1e3 * moved:.2f} ms:"
            f" {spent / max(needed, moved):.2f} x the floor"
        )


def main() -> None:
    native = [name for name in _native.up_kernels() if name != "portable"]
    args = program.options(
        __doc__,
        network=["demo", "reference"],
        threads=[1, 2],
        stages=[1, 2],
        kernels=native,
        rounds=30,
    )
    rates = peak()
    print(f"one thread: {rates[0] / 1e9:.1f} G multiply-adds/s, {rates[1] / 1e9:.1f} GB/s copied")
    for name in args.network:
        net = network(name)
        variants = [Variant(net, None, 0)]
        variants += [Variant(net, k, n) for k in args.kernels for n in args.stages]
        for threads in args.threads:
            compare(net, variants, threads, args.rounds)
        floor(net, variants, rates)


if __name__ == "__main__":
    main()
