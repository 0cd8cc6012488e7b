# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: ONNX Runtime for the networks, C++ for the image path.

Each frame is made by one thread, and as many frames at a time as there are threads: that scales
with the processors, where sharing one network run among threads does not (2 threads: 1.4 x). A
picture's bits depend neither on the number of threads nor on what else is being made.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.avatars.manifest import REGION_BORDER
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import (
    AUDIO_BLOCK_ROWS,
    FEATURE_SIZE,
    LoadedAvatar,
    RegionJob,
    Result,
)
from lipsync_fast.errors import AvatarFormatError, BackendError
from lipsync_fast.models.shapes import AUDIO_SHAPE, LEVELS, Box, level_shapes, output_shape

IMAGE_CACHE_BYTES = 512 << 20
PICTURE_CACHE_BYTES = 256 << 20
_LIMIT = 512 << 20

Value = TypeVar("Value")


class ByteLru(Generic[Value]):
    """Values by key, the least recently used dropped beyond a number of bytes; for any thread.

    Args:
        limit: bytes that may be held.
        uses: keep a value from this use on. New memory is dear (1 ms per MB on a virtual machine
            that has not touched it yet), so what is costly to keep should be asked for twice.
    """

    def __init__(self, limit: int, uses: int = 1) -> None:
        self.limit, self.used, self._uses = limit, 0, uses
        self._asked: dict[Hashable, int] = {}
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Value, int]]) -> Value:
        """The value of ``key``, made (with its size in bytes) where it is not there.

        Two threads that ask for the same missing key both make it; one result is kept.
        """
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                return found[0]
        value, size = make()
        with self._lock:
            asked = self._asked[key] = self._asked.get(key, 0) + 1
            if asked >= self._uses and key not in self._entries:
                self._entries[key] = value, size
                self.used += size
            while self.used > self.limit and len(self._entries) > 1:
                _, (_, dropped) = self._entries.popitem(last=False)
                self.used -= dropped
        return value

    def clear(self) -> None:
        """Forget all entries."""
        with self._lock:
            self._entries.clear()
            self._asked.clear()
            self.used = 0


class CpuAvatar:
    """An avatar's networks in ONNX Runtime; made by ``CpuBackend.load``."""

    def __init__(self, package: AvatarPackage, options: ort.SessionOptions) -> None:
        self.package = package
        m = package.manifest
        self.audio_encoder = _session(package, "audio_encoder", options)
        self.image = _session(package, "image", options)
        self.decoder = _session(package, "decoder", options)
        w = m.window
        box = None if w is None else Box(w.x, w.y, w.width, w.height)
        levels = level_shapes(m.width, m.region, box)
        self.corner = (REGION_BORDER + w.x, REGION_BORDER + w.y) if w else (REGION_BORDER,) * 2
        for name, session, inputs, outputs in (
            ("audio_encoder", self.audio_encoder, {"mel": (1, 80, 16)}, {"feature": (512,)}),
            ("image", self.image, {"image": (6, m.region, m.region)}, levels),
            (
                "decoder",
                self.decoder,
                {**levels, "audio": AUDIO_SHAPE},
                {"region": output_shape(m.region, box)},
            ),
        ):
            _expect(package, name, session, inputs, outputs)

    def own_region(
        self, index: int, picture: NDArray[np.uint8], size: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        """The avatar's own pixels (H x W x 3 RGB) where the network's go."""
        left, top = self.corner
        return self.package.crop(index, picture)[top : top + size[0], left : left + size[1]]


def _session(
    package: AvatarPackage, name: str, options: ort.SessionOptions
) -> ort.InferenceSession:
    data = package.model(name)
    if len(data) > _LIMIT:
        raise AvatarFormatError(f"{package.path}: {name}.onnx is larger than 512 MiB")
    try:
        return ort.InferenceSession(bytes(data), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, by the kind of damage
        reason = str(error).splitlines()[0][:200]
        raise AvatarFormatError(f"{package.path}: {name}.onnx cannot be loaded: {reason}") from None


def _expect(
    package: AvatarPackage,
    name: str,
    session: ort.InferenceSession,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse a network whose inputs and outputs are not those of the manifest's family."""
    for what, wanted, found in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        have = {v.name: tuple(v.shape[1:]) for v in found if v.type == "tensor(float)"}
        if have != wanted or len(found) != len(wanted):
            raise AvatarFormatError(
                f"{package.path}: {name}.onnx does not fit the manifest: {what}s are {have},"
                f" expected {wanted}"
            )


class CpuBackend:
    """See ``engine.backends.base.Backend``; one per process.

    Args:
        threads: frames made at the same time; the processors this process may use by default.
    """

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = 1
        self._options.inter_op_num_threads = 1
        # With a known batch every shape is known, and additions and ReLUs merge into convolutions.
        self._options.add_free_dimension_override_by_name("batch", 1)
        self._options.log_severity_level = 3
        self._levels: ByteLru[dict[str, NDArray[np.float32]]] = ByteLru(IMAGE_CACHE_BYTES, uses=2)
        self._pictures: ByteLru[NDArray[np.uint8]] = ByteLru(PICTURE_CACHE_BYTES, uses=2)
        self._workers = ThreadPoolExecutor(self.threads, "lipsync-cpu")
        self._closed = False

    @property
    def depth(self) -> int:
        """How many submitted frames keep the processors busy."""
        return 2 * self.threads + 1

    def load(self, package: AvatarPackage) -> CpuAvatar:
        """Make an avatar ready (a fraction of a second).

        Raises:
            AvatarFormatError: its networks do not fit its manifest.
        """
        return CpuAvatar(package, self._options)

    def features(
        self, avatar: LoadedAvatar, mel_windows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Mel windows N x 16 x 80 to features N x 512 float32, each computed by itself."""
        mine = self._own(avatar)
        out = np.empty((len(mel_windows), FEATURE_SIZE), np.float32)
        for i, window in enumerate(mel_windows):
            mel = np.ascontiguousarray(window.T)[None, None]
            out[i] = mine.audio_encoder.run(None, {"mel": mel})[0][0]
        return out

    def regions(self, jobs: Sequence[RegionJob]) -> list[NDArray[np.uint8]]:
        """The generated squares (or windows), H x W x 3 uint8 RGB, in the order of ``jobs``."""
        for job in jobs:
            self._check(job)
        return list(self._workers.map(self._region, jobs))

    def submit(
        self,
        jobs: Sequence[RegionJob],
        finish: Callable[[int, NDArray[np.uint8]], Result],
    ) -> list[Future[Result]]:
        """Begin to make whole frames; each thread that made one calls ``finish(place, frame)``."""
        for job in jobs:
            self._check(job)
        return [
            self._workers.submit(lambda k, job: finish(k, self._frame(job)), k, job)
            for k, job in enumerate(jobs)
        ]

    def _check(self, job: RegionJob) -> None:
        self._own(job.avatar)
        if job.audio_block.shape != (AUDIO_BLOCK_ROWS, FEATURE_SIZE):
            raise ValueError(f"audio block of shape {job.audio_block.shape}, expected (16, 512)")
        if not 0 <= job.share <= 1:
            raise ValueError(f"share {job.share}: expected 0 to 1")

    def _region(
        self, job: RegionJob, picture: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        avatar = self._own(job.avatar)
        feed = dict(self._image_half(avatar, job.frame_index, picture))
        feed["audio"] = np.ascontiguousarray(job.audio_block, np.float32).reshape(1, *AUDIO_SHAPE)
        made = _native.region_output(avatar.decoder.run(None, feed)[0][0])
        if job.share == 1:
            return made
        whole = self._picture(avatar, job.frame_index) if picture is None else picture
        own = avatar.own_region(job.frame_index, whole, made.shape[:2]).astype(np.float32)
        return np.rint(own + np.float32(job.share) * (made - own)).astype(np.uint8)

    def _frame(self, job: RegionJob) -> NDArray[np.uint8]:
        avatar = self._own(job.avatar)
        picture = self._picture(avatar, job.frame_index)
        return _composed(avatar, job.frame_index, picture, self._region(job, picture))

    def compose(
        self, avatar: LoadedAvatar, frame_index: int, region: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """The whole frame H x W x 3 uint8 RGB with ``region`` pasted in; the caller owns it."""
        mine = self._own(avatar)
        return _composed(mine, frame_index, self._picture(mine, frame_index), region)

    def close(self) -> None:
        """Stop the threads and free the caches; loaded avatars become unusable."""
        self._closed = True
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._levels.clear()
        self._pictures.clear()

    def _own(self, avatar: LoadedAvatar) -> CpuAvatar:
        if self._closed:
            raise BackendError("the backend is closed")
        if not isinstance(avatar, CpuAvatar):
            raise TypeError("the avatar was loaded by another backend")
        return avatar

    def _picture(self, avatar: CpuAvatar, index: int) -> NDArray[np.uint8]:
        def make() -> tuple[NDArray[np.uint8], int]:
            picture = avatar.package.picture(index)
            return picture, picture.nbytes

        return self._pictures.get((id(avatar), index), make)

    def _image_half(
        self, avatar: CpuAvatar, index: int, picture: NDArray[np.uint8] | None
    ) -> dict[str, NDArray[np.float32]]:
        """x1 .. x6 of an avatar's frame, each 1 x C x H x W."""

        def make() -> tuple[dict[str, NDArray[np.float32]], int]:
            whole = self._picture(avatar, index) if picture is None else picture
            crop = avatar.package.crop(index, whole)
            image = _native.region_input(crop, REGION_BORDER)[None]
            made = avatar.image.run(list(LEVELS), {"image": image})
            levels = dict(zip(LEVELS, made, strict=True))
            return levels, sum(v.nbytes for v in levels.values())

        return self._levels.get((id(avatar), index), make)


def _composed(
    avatar: CpuAvatar, index: int, picture: NDArray[np.uint8], region: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    frame = picture.copy()
    package = avatar.package
    crop = package.crop(index, picture)
    rect, keep = package.rect(index), package.mask(index)
    _native.compose(crop, region, avatar.corner, frame, rect, keep)
    return frame
