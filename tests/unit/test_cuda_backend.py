# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend as a whole, on the host in a device's place: real results, the real kernels.

What is not seen here is what only a GPU has: streams that run at the same time, and captures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from backends import difference
from engines import jobs_of, noise
from numpy.typing import NDArray
from test_scheduler import Front

pytest.importorskip("torch", reason="the CUDA backend needs torch")

from lipsync_fast.audio.windows import AudioWindow, BlockCache, block_starts, samples_seen
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends import create_backend
from lipsync_fast.engine.backends.base import SQUARE, Coded, Encode, RegionJob, Sound
from lipsync_fast.engine.backends.cuda.backend import CudaBackend
from lipsync_fast.engine.backends.cuda.device import Fault, HostDevice
from lipsync_fast.engine.capacity import measure
from lipsync_fast.engine.pipeline import SoundStream, pictures
from lipsync_fast.engine.process import backend_name
from lipsync_fast.engine.scheduler import Scheduler
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.errors import BackendError, DeviceLostError
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Content, Look, Status

pytestmark = pytest.mark.slow

F32, U8 = NDArray[np.float32], NDArray[np.uint8]
PART = Rect(16, 32, 144, 128)


class Gate(HostDevice):
    """A device whose batches end when they are let go, one after the other; it can be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.lost, self.waits = threading.Semaphore(0), False, 0
        self.free_run = True

    def event(self) -> Any:
        return _Event(self)

    def fault(self, error: BaseException) -> Fault:
        return Fault.LOST if "illegal memory access" in str(error) else super().fault(error)


class _Event:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        gate = self._gate
        gate.waits += 1
        if not gate.free_run:
            assert gate.open.acquire(timeout=60)
        if gate.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def sound_of(pcm: F32, frame: int, stream: object = 1) -> Sound:
    starts = block_starts(frame, AudioWindow())
    first, end = samples_seen(starts)
    return Sound(stream, tuple(starts), pcm[first:end], first)


def keep(place: int, image: Any) -> Any:
    return image


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def package(tiny_avatar: Path) -> Iterator[AvatarPackage]:
    with AvatarPackage.open(tiny_avatar) as opened:
        yield opened


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def backend(gate: Gate) -> Iterator[CudaBackend]:
    made = CudaBackend(gate, precision="fp32", sizes=(1, 2, 4, 8))
    yield made
    made.close()


@pytest.fixture(scope="module")
def avatar(backend: CudaBackend, package: AvatarPackage) -> Any:
    loaded = backend.load(package)
    assert backend.settle(60)
    return loaded


def spoken(avatar: Any, count: int, *, stream: object = 1, part: Any = PART) -> list[RegionJob]:
    """Frames of one sound over changing pictures."""
    pcm = noise(4.0, seed=3)
    return [
        RegionJob(avatar, k % 5, None, part=part, sound=sound_of(pcm, 20 + k, stream))
        for k in range(count)
    ]


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(60) for future in futures]


# ---------------------------------------------------------------- sound
def test_sounds_give_what_their_blocks_give(backend: CudaBackend, avatar: Any) -> None:
    """From the beginning of a sound, over frames that are missing, in any order."""
    pcm = noise(4.0, seed=3)
    blocks = BlockCache(lambda mel: backend.features(avatar, mel))
    order = [0, 1, 2, 9, 8, 40, 41, 5]
    heard, read = [], []
    for k in order:
        sound = sound_of(pcm, k, "order")
        heard.append(RegionJob(avatar, k % 5, None, sound=sound))
        block = blocks.block("s", list(sound.starts), sound.pcm, sound.first)
        read.append(RegionJob(avatar, k % 5, block))
    mixed = [job for pair in zip(heard, read, strict=True) for job in pair]
    made = backend.regions(mixed)
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert difference(one, other) <= 1


def test_a_sound_that_lies_costs_its_frame_alone(backend: CudaBackend, avatar: Any) -> None:
    good, bad = spoken(avatar, 2)
    assert bad.sound is not None
    late = replace(bad, sound=replace(bad.sound, first=bad.sound.first + 500))
    futures = backend.submit([late, good], keep)
    with pytest.raises(ValueError, match="or before"):
        futures[0].result(60)
    assert futures[1].result(60).shape == (128, 144, 3)


def test_streamed_sounds_are_those_of_single_frames() -> None:
    """And no more of the sound is held than later frames see."""
    pcm, stream = noise(30.0), SoundStream(AudioWindow())
    got = [sound for at in range(0, len(pcm), 3_111) for sound in stream.push(pcm[at : at + 3_111])]
    assert len(stream._kept) < 40_000
    count = len(got)
    got += stream.finish()
    assert count < len(got) == 30 * 25
    for k, sound in enumerate(got):
        starts = block_starts(k, AudioWindow(), None if k < count else len(pcm))
        first, end = samples_seen(starts)
        assert sound.starts == tuple(starts)
        assert sound.first == first
        assert np.array_equal(sound.pcm, pcm[first:end])


def test_rendering_is_the_cpus(backend: CudaBackend, avatar: Any, package: AvatarPackage) -> None:
    plain = create_backend("cpu", 2)
    loaded = plain.load(package)
    for seconds in (0.05, 1.5):
        pcm = noise(seconds)
        pieces = [pcm[at : at + 700] for at in range(0, len(pcm), 700)]
        wanted = list(pictures(plain, loaded, pieces, 2))
        made = list(pictures(backend, avatar, pieces, 2))
        assert [p.avatar_frame for p in made] == [p.avatar_frame for p in wanted]
        for one, other in zip(made, wanted, strict=True):
            assert difference(one.image, other.image) <= 2
    plain.close()


# ---------------------------------------------------------------- batches
def test_frames_are_the_same_one_by_one_and_together(backend: CudaBackend, avatar: Any) -> None:
    """Within a grey level: the sums' order in torch's convolutions follows the batch's size."""
    todo = spoken(avatar, 13, stream="together")
    together = results(backend.submit(todo, keep))
    for job, frame in zip(todo, together, strict=True):
        assert job.sound is not None
        again = replace(job, sound=replace(job.sound, stream="alone"))
        assert difference(backend.submit([again], keep)[0].result(60), frame) <= 1


def test_one_task_begins_at_once_and_more_are_gathered(
    backend: CudaBackend, avatar: Any, gate: Gate
) -> None:
    """As many batches as there are lanes are on their way; then tasks gather for the next one."""
    results(backend.submit(spoken(avatar, 5), keep))
    launcher, todo = backend.launcher, spoken(avatar, 14)
    until(lambda: launcher.idle)
    gate.free_run = False
    try:
        begun, frames = launcher.batches, launcher.frames
        futures = []
        for k in range(3):
            futures += backend.submit([todo[k]], keep)
            until(lambda k=k: launcher.batches == begun + k + 1)
        for job in todo[3:]:
            futures += backend.submit([job], keep)
        assert launcher.batches == begun + 3
        assert launcher.frames == frames + 3
        assert not futures[0].done()
        gate.open.release()
        until(lambda: launcher.batches == begun + 4)
        assert launcher.frames == frames + 3 + 8, "the largest graph takes eight at once"
        assert futures[0].result(60) is not None
    finally:
        gate.free_run = True
        gate.open.release(20)
    assert len(results(futures)) == 14
    until(lambda: launcher.idle)
    while gate.open.acquire(blocking=False):
        pass


def test_avatars_are_made_apart_in_the_order_of_their_first_frames(
    backend: CudaBackend, avatar: Any, package: AvatarPackage
) -> None:
    second = backend.load(package)
    assert second.statics is avatar.statics, "static memory is for all avatars of one shape"
    jobs = [job for pair in zip(spoken(avatar, 6), spoken(second, 6), strict=True) for job in pair]
    made = results(backend.submit(jobs, keep))
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert difference(one, other) <= 1
    backend.unload(second)
    with pytest.raises(TypeError, match="another backend"):
        backend.regions([RegionJob(object(), 0, None, sound=jobs[0].sound)])  # type: ignore[arg-type]


def test_with_few_slots_batches_are_cut_and_all_frames_are_made(package: AvatarPackage) -> None:
    """The device has room for the image halves of a few of the avatar's frames alone."""
    backend = CudaBackend(HostDevice(), precision="fp32", sizes=(1, 2, 4, 8))
    try:
        avatar = backend.load(package)
        backend._share.limit = 0
        avatar.images._first = 2
        avatar.images.shed()
        assert avatar.images.allocated == 2 * avatar.images.each
        todo = spoken(avatar, 20)
        made = results(backend.submit(todo, keep))
        assert avatar.images.used == 2 * avatar.images.each
    finally:
        backend.close()
    roomy = CudaBackend(HostDevice(), precision="fp32", sizes=(1, 2, 4, 8))
    try:
        loaded = roomy.load(package)
        wanted = results(roomy.submit(spoken(loaded, 20), keep))
    finally:
        roomy.close()
    assert max(map(difference, made, wanted)) <= 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_other_precisions_are_near(
    backend: CudaBackend, avatar: Any, package: AvatarPackage, precision: Any
) -> None:
    """Two grey levels at worst, a tenth on average: float16; bfloat16 has fewer bits."""
    todo = spoken(avatar, 4, stream="precise")
    wanted = results(backend.submit(todo, keep))
    other = CudaBackend(HostDevice(), precision=precision, sizes=(1, 4))
    try:
        loaded = other.load(package)
        made = results(other.submit([replace(job, avatar=loaded) for job in todo], keep))
    finally:
        other.close()
    assert max(map(difference, made, wanted)) <= (2 if precision == "fp16" else 4)
    apart = [np.abs(a.astype(int) - b).mean() for a, b in zip(made, wanted, strict=True)]
    assert max(apart) <= (0.1 if precision == "fp16" else 0.5)


# ---------------------------------------------------------------- coded on the device
def segments_of(image: U8, encode: Encode) -> list[bytes]:
    x1, y1, x2, y2 = encode.box.corners
    how = FrameJpeg(quality=encode.quality, restart_interval=encode.interval)
    jpeg = encode_frame(np.ascontiguousarray(image[y1:y2, x1:x2]), how)
    at = [int(v) for v in segment_offsets(jpeg)]
    ends = [*(end - 2 for end in at[1:-1]), at[-1]]
    return [jpeg[a:b] for a, b in zip(at, ends, strict=False)]


def test_coded_segments_are_those_of_the_pixels(backend: CudaBackend, avatar: Any) -> None:
    """Byte for byte, of mixed boxes, qualities and intervals; pixels and squares between them."""
    encodes: list[Encode | None] = [
        Encode(Rect(0, 0, 144, 128), 85, 4),
        None,
        Encode(Rect(16, 8, 97, 111), 30, 1),
        Encode(Rect(0, 16, 144, 112), 95, 9),
        Encode(Rect(0, 0, 144, 128), 85, 65_535),
        None,
    ]
    todo = spoken(avatar, 6, stream="coded")
    plain = results(backend.submit(todo, keep))
    asked = [replace(job, encode=encode) for job, encode in zip(todo, encodes, strict=True)]
    asked[5] = replace(asked[5], part=SQUARE, encode=encodes[0])
    made = results(backend.submit(asked, keep))
    for encode, one, image in zip(encodes[:5], made, plain, strict=False):
        if encode is None:
            assert np.array_equal(one, image)
            continue
        assert isinstance(one, Coded)
        cut = one.offsets
        found = [bytes(one.data[a:b]) for a, b in pairwise(cut)]
        assert found == segments_of(image, encode)
    assert made[5].shape == (224, 224, 3), "a square is never coded there"


def test_what_does_not_fit_comes_as_pixels(
    backend: CudaBackend, avatar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that would need too much memory; and code that is larger than was made room for."""
    import lipsync_fast.engine.backends.cuda.batch as module

    (job,) = spoken(avatar, 1)
    job = replace(job, encode=Encode(Rect(0, 0, 144, 128), 85, 4))
    assert isinstance(backend.submit([job], keep)[0].result(60), Coded)
    pixels = backend.submit([replace(job, encode=None)], keep)[0].result(60)
    with monkeypatch.context() as patch:
        patch.setattr(module, "MOST_CODED", 100)
        assert np.array_equal(backend.submit([job], keep)[0].result(60), pixels)
    plain = module.Batch.lay_out

    def little(self: Any, slot_bytes: Any) -> None:
        plain(self, slot_bytes)
        self.results.most = 64

    with monkeypatch.context() as patch:
        patch.setattr(module.Batch, "lay_out", little)
        assert np.array_equal(backend.submit([job], keep)[0].result(60), pixels)


def test_boxes_that_leave_their_part_are_refused(backend: CudaBackend, avatar: Any) -> None:
    (job,) = spoken(avatar, 1)
    for encode in (Encode(Rect(0, 0, 145, 128), 85, 4), Encode(Rect(5, 0, 0, 9), 85, 4)):
        with pytest.raises(ValueError, match="does not lie in a part"):
            backend.submit([replace(job, encode=encode)], keep)
    with pytest.raises(ValueError, match="quality 0"):
        backend.submit([replace(job, encode=Encode(Rect(0, 0, 9, 9), 0, 4))], keep)


# ---------------------------------------------------------------- in an engine
def made_by(
    backend: Any, path: Path, looks: list[Look], seconds: float
) -> tuple[dict[int, Any], Scheduler]:
    """Answers to a sound's jobs, each in all looks, from an engine with real rings."""
    engine = Scheduler(backend, FrameEncoder())
    engine.registry.load("a", path)
    m = engine.registry.avatars["a"].package.manifest
    front = Front(engine)
    count = 0
    for look in looks:
        jobs = jobs_of(noise(seconds), m.audio, m.avatar_frame, avatar="a", look=look)
        for job, pcm in jobs:
            front.submit(msgspec.structs.replace(job, number=count), pcm)
            count += 1
    got = {answer.number: (answer, jpeg) for answer, jpeg in front.run(count)}
    front.close()
    return got, engine


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_an_engine_answers_as_one_on_the_cpu(tiny_avatar: Path, name: str) -> None:
    """The same pictures but for two grey levels in what is coded; the same bytes where it is equal.

    The demo avatar's frames are of 720p, with masks, and the network makes a part of the square.
    """
    path = tiny_avatar if name == "tiny" else AvatarLibrary().find("demo")
    looks = [Look(), Look(Content.REGION)]
    if name == "tiny":
        looks += [Look(Content.MOUTH), Look(quality=40), Look(max_width=80)]
    spying = _Spy(CudaBackend(HostDevice(), precision="fp32"))
    seconds = 0.4 if name == "tiny" else 0.16
    got, engine = made_by(spying, path, looks, seconds)
    wanted, other = made_by(create_backend("cpu", 2, live=True), path, looks, seconds)
    try:
        assert {a.status for a, _ in got.values()} == {Status.MADE}, got
        frames = len(got) // len(looks)
        full = sum(look.content == Content.FRAME and not look.max_width for look in looks)
        assert spying.coded == full * frames, (
            "whole frames at their full size are coded on the device"
        )
        same = sum(got[k][1] == wanted[k][1] for k in wanted)
        for number, (answer, jpeg) in wanted.items():
            assert got[number][0].box == answer.box
            assert abs(len(got[number][1]) - len(jpeg)) <= 0.02 * len(jpeg)
        assert same >= len(wanted) // 4, "most frames differ in no pixel at all"
    finally:
        engine.close()
        other.close()


class _Spy:
    """A backend that counts what comes coded."""

    def __init__(self, backend: CudaBackend) -> None:
        self._backend, self.coded = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(self, jobs: Any, finish: Callable[[int, Any], Any]) -> Any:
        def spied(place: int, image: Any) -> Any:
            self.coded += isinstance(image, Coded)
            return finish(place, image)

        return self._backend.submit(jobs, spied)


def test_capacity_is_measured_with_the_device_full(backend: CudaBackend, tiny_avatar: Path) -> None:
    served = RegisteredAvatar.open(backend, tiny_avatar)
    assert measure(backend, FrameEncoder(), served, 0.0) == 0.0
    frames = backend.launcher.frames
    assert measure(backend, FrameEncoder(), served, 0.2) > 0
    assert backend.launcher.frames - frames >= backend.depth
    backend.unload(served.loaded)
    served.package.close()


# ---------------------------------------------------------------- a device that fails
def test_a_lost_device_ends_the_loop_and_answers_nothing(tiny_avatar: Path) -> None:
    """Its jobs are for another engine; every one that follows is refused."""
    gate = Gate()
    backend = CudaBackend(gate, precision="fp32", sizes=(1, 2))
    engine = Scheduler(backend, FrameEncoder())
    engine.registry.load("a", tiny_avatar)
    m = engine.registry.avatars["a"].package.manifest
    front = Front(engine)
    gate.lost = True
    for job, pcm in jobs_of(noise(0.4), m.audio, m.avatar_frame, avatar="a"):
        front.submit(job, pcm)
    with pytest.raises(DeviceLostError, match="emulated has failed: CUDA error: an illegal"):
        until(lambda: engine.step() and False)
    front.read()
    assert front.got == []
    avatar = engine.registry.avatars["a"].loaded
    with pytest.raises(DeviceLostError):
        backend.submit(spoken(avatar, 1), keep)
    with pytest.raises(DeviceLostError):
        backend.features(avatar, np.zeros((1, 16, 80), np.float32))
    front.close()
    engine.close()


def test_an_idle_engine_finds_out_that_its_device_is_lost(
    backend: CudaBackend, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, total = backend.device_memory
    assert 0 <= used <= total > 0

    def fail() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(gate, "memory", fail)
    with pytest.raises(DeviceLostError, match="unspecified launch failure"):
        _ = backend.device_memory


def test_a_devices_memory_is_told_of(
    backend: CudaBackend, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Scheduler(backend, FrameEncoder())
    for free, total in ((700, 1_000), (400, 1_600)):
        monkeypatch.setattr(gate, "memory", lambda free=free, total=total: (free, total))
        load = engine.load_now()
        assert (load.device_memory_used, load.device_memory_total) == (total - free, total)


def test_a_failed_batch_costs_its_frames_alone(
    backend: CudaBackend, avatar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lipsync_fast.engine.backends.cuda.batch as module

    good = results(backend.submit(spoken(avatar, 3, stream="failed"), keep))

    def fail(*_: Any) -> None:
        raise RuntimeError("launching a kernel: invalid configuration argument")

    with monkeypatch.context() as patch:
        patch.setattr(module.Batch, "_decode", fail)
        for future in backend.submit(spoken(avatar, 3, stream="new"), keep):
            with pytest.raises(BackendError, match="a batch failed: launching a kernel"):
                future.result(60)
    again = results(backend.submit(spoken(avatar, 3, stream="new"), keep))
    assert max(map(difference, good, again)) <= 1, "nothing is taken for there that is not"


def test_closed_in_the_middle_every_future_ends(package: AvatarPackage) -> None:
    gate = Gate()
    backend = CudaBackend(gate, precision="fp32", sizes=(1, 2))
    avatar = backend.load(package)
    gate.free_run = False
    futures = backend.submit(spoken(avatar, 30), keep)
    gate.open.release(100)
    backend.close()
    assert all(future.done() for future in futures)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.submit(spoken(avatar, 1), keep)


# ---------------------------------------------------------------- which device
def test_without_a_gpu_it_is_said_what_is_missing() -> None:
    with pytest.raises(BackendError, match=r"CUDA finds no GPU|built without nvcc"):
        create_backend("cuda")
    with pytest.raises(BackendError, match=r"CUDA finds no GPU|built without nvcc"):
        create_backend("cuda:3")
    with pytest.raises(BackendError, match="or cuda:N"):
        create_backend("cuda:x")
    chosen = create_backend("auto", 1)
    assert chosen.name == "cpu"
    chosen.close()
    with pytest.raises(BackendError, match="precision 'fp8'"):
        CudaBackend(HostDevice(), precision="fp8")  # type: ignore[arg-type]


def test_an_engines_device_by_the_machines_numbers_and_by_its_own() -> None:
    assert backend_name("cpu", "3") == "cpu"
    assert backend_name("cuda:3", "3") == "cuda:0", "it sees that one alone"
    assert backend_name("cuda:3", "GPU-8e4a") == "cuda:0"
    assert backend_name("cuda:3", None) == "cuda:3"
    assert backend_name("cuda:3", "0,1,2,3") == "cuda:3"
