# SPDX-License-Identifier: Apache-2.0
"""Parity of whole frames, as the backend makes them: against the reference, the CPU, and itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from gpu_check.context import Context
from gpu_check.samples import DTYPES, generator
from gpu_check.target import Target, grey
from lipsync_fast.audio.windows import BlockStream, block_starts
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends import Coded, RegionJob, Sound
from lipsync_fast.engine.backends.cpu import CpuBackend
from lipsync_fast.engine.backends.cuda.backend import CudaBackend
from lipsync_fast.engine.backends.cuda.device import Precision
from lipsync_fast.engine.backends.cuda.graphs import SIZES
from lipsync_fast.engine.splice import FrameEncoder, Variant, how_coded
from lipsync_fast.frontend.playout.utterance import Utterance

FRAME_GREY = 2


def _backend(target: Target, kind: str) -> CudaBackend:
    sizes = (1, 2) if target.dry else SIZES
    return CudaBackend(target.device, precision=cast(Precision, kind), sizes=sizes)


def whole(context: Context, target: Target) -> None:
    """Golden frames: from sound to the pasted picture, by the backend, in each precision."""
    from golden import load

    golden = load("frames")
    pcm = load("audio")["pcm16k"].astype(np.float32) / np.float32(32768)
    last = int(golden["feature_index"].max())
    for kind in ("fp32",) if context.dry else tuple(DTYPES):
        backend = _backend(target, kind)
        with AvatarPackage.open(context.avatars / "golden") as package:
            loaded = backend.load(package)
            stream = BlockStream(package.manifest.audio, partial(backend.features, loaded))
            blocks = list(stream.push(pcm[: 640 * last + 12_000]))
            for k, at in enumerate(golden["feature_index"].tolist()):
                region = backend.regions([RegionJob(loaded, k, blocks[at])])[0]
                frame = backend.compose(loaded, k, region)
                found = grey(frame, golden["outputs"][k][..., ::-1])
                context.found.value("golden frames", f"{k} {kind}", value=found)
                good = found["worst"] <= (FRAME_GREY if kind == "fp32" else 255)
                context.found.check(f"golden frame {k}, {kind}", good, str(found))
            backend.unload(loaded)
        backend.close()


def coded(context: Context, target: Target) -> None:
    """A part that the device has coded is what coding its own pixels gives, spliced or not."""

    encoder, rng = FrameEncoder(), generator()
    backend = _backend(target, "fp32")
    with AvatarPackage.open(context.avatars / ("tiny" if context.dry else "reference")) as package:
        loaded, m = backend.load(package), package.manifest
        variant, how = Variant(m.jpeg.quality), how_coded(m, m.jpeg.quality)
        for index in range(2 if context.dry else 8):
            block = rng.standard_normal((16, 512)).astype(np.float32)
            place = encoder.place(package, index, variant)
            job = RegionJob(loaded, index, block, part=place.part)
            wanted = [job, replace(job, encode=place.encode(how))]
            pixels, code = (f.result() for f in backend.submit(wanted, lambda _, made: made))
            assert isinstance(code, Coded)
            frame = package.picture(index).copy()
            x1, y1, x2, y2 = place.part.corners
            frame[y1:y2, x1:x2] = pixels
            ours = encoder.frame(package, index, variant, code)
            same = ours == encoder.frame(package, index, variant, pixels)
            again = encode_frame(frame, how)
            context.found.check(f"coded part {index}, as its pixels'", same, f"{len(ours)} bytes")
            scans = (data[int(segment_offsets(data)[0]) :] for data in (again, ours))
            context.found.check(f"coded part {index}, in its frame", len(set(scans)) == 1)
        backend.unload(loaded)
    backend.close()


def batches(context: Context, target: Target) -> None:
    """Frames of large batches are those that are made alone, and the same each time."""
    count = 3 if context.dry else 150
    rng, backend = generator(), _backend(target, "fp32" if context.dry else "fp16")
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        loaded, frames = backend.load(package), package.manifest.frame_count
        backend.warming.wait(60)
        mels = rng.uniform(-4, 4, (count, 16, 16, 80)).astype(np.float32)
        blocks = [backend.features(loaded, mel) for mel in mels]
        indexes = [0, 0, *(int(k) for k in rng.integers(0, frames, count - 2))]
        jobs = [RegionJob(loaded, k, b) for k, b in zip(indexes, blocks, strict=True)]
        backend.regions(jobs)  # brings the faces there: from now on, all jobs are ready at once
        together, again = backend.regions(jobs), backend.regions(jobs)
        alone = [backend.regions([job])[0] for job in jobs[:40]]
        backend.unload(loaded)
    backend.close()
    differ = bool((together[0] != together[1]).any())  # else mixed up sounds would not be seen
    context.found.check("a mouth depends on what it is given", differ)
    moved = sum(not np.array_equal(a, b) for a, b in zip(together, again, strict=True))
    by = grey(np.stack(again), np.stack(together))  # more than rounding would be a race
    context.found.value("a batch against itself", value={"frames that differ": moved, **by})
    context.found.check("a batch gives the same frames again", by["worst"] <= 1, f"{by}, {moved}")
    found = grey(np.stack(together[: len(alone)]), np.stack(alone))
    context.found.value("a batch against single frames", value=found)
    context.found.check("a batch gives single frames", found["worst"] <= FRAME_GREY, str(found))


def heard(context: Context, target: Target) -> None:
    """Sound that the backend hears itself gives the frames of blocks computed from it."""
    from golden import load

    backend = _backend(target, "fp32")
    pcm = (load("audio")["pcm16k"][:32_000]).astype(np.float32) / np.float32(32768)
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        loaded, window = backend.load(package), package.manifest.audio
        stream = BlockStream(window, partial(backend.features, loaded))
        blocks = list(stream.push(pcm))
        utterance = Utterance(1, window)
        utterance.push(pcm)
        chosen = range(0, min(len(blocks), utterance.decided), 12 if context.dry else 2)
        jobs = [RegionJob(loaded, 0, blocks[k]) for k in chosen]
        for k in chosen:
            speech, seen = utterance.speech(k)
            starts = tuple(block_starts(k, window, speech.samples))
            jobs.append(RegionJob(loaded, 0, None, sound=Sound("one", starts, seen, speech.first)))
        made = backend.regions(jobs)
        backend.unload(loaded)
    backend.close()
    given, own = np.stack(made[: len(chosen)]), np.stack(made[len(chosen) :])
    found = grey(own, given)
    differ = bool((given[0] != given[-1]).any())  # else a deaf backend would pass
    context.found.check("sound makes a difference", differ)
    context.found.check("heard as given", found["worst"] <= 1, str(found))


def precision(context: Context, target: Target) -> None:
    """Grey levels on the demo avatar's mouth: each precision against float32 on the device, and
    float32 against the CPU's backend."""

    rng = generator()
    indexes = [0] if context.dry else [int(k) for k in rng.integers(0, 100, 24)]
    mels = rng.uniform(-4, 4, (len(indexes), 16, 16, 80)).astype(np.float32)
    made: dict[str, list[NDArray[np.uint8]]] = {}
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        for kind in ("cpu", "fp32") if context.dry else ("cpu", *DTYPES):
            backend = CpuBackend(2) if kind == "cpu" else _backend(target, kind)
            loaded = backend.load(package)
            blocks = [backend.features(loaded, mel) for mel in mels]
            jobs = [RegionJob(loaded, k, b) for k, b in zip(indexes, blocks, strict=True)]
            made[kind] = backend.regions(jobs)
            backend.unload(loaded)
            backend.close()
    for kind in made:
        if kind == "cpu":
            continue
        of = "cpu" if kind == "fp32" else "fp32"
        found = grey(np.stack(made[kind]), np.stack(made[of]))
        context.found.value("precision", kind, value={"against": of, **found})
        bound = 1 if kind == "fp32" else 255
        context.found.check(f"mouths, {kind} against {of}", found["worst"] <= bound, str(found))
