# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: ONNX Runtime for the networks, C++ for the decoder's end and the image path.

Each frame is made by one thread, and as many frames at a time as there are threads: that scales
with the processors, where sharing one network run among threads does not (2 threads: 1.4 x). A
picture's bits depend neither on the number of threads nor on what else is being made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.windows import FEATURE_SIZE
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import (
    SQUARE,
    LoadedAvatar,
    RegionJob,
    Result,
    check_job,
)
from lipsync_fast.engine.backends.cpu_avatar import CpuAvatar
from lipsync_fast.engine.backends.decoder import choose_kernel
from lipsync_fast.engine.backends.sessions import Sessions
from lipsync_fast.engine.caches import AHEAD_SHARE, ByteLru, within_memory
from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.errors import BackendError
from lipsync_fast.families import CropRule
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.frame_store import FrameStore
from lipsync_fast.logs import get_logger
from lipsync_fast.machine import processors
from lipsync_fast.priority import started_pool

log = get_logger("lipsync.engine")
IMAGE_CACHE_BYTES = 512 << 20
PICTURE_CACHE_BYTES = 256 << 20
FACE_CACHE_BYTES = 512 << 20
SHARED_BYTES, SHARED_SHARE = 64 << 30, 1 / 4
"""What shared image halves may take: bytes, and a share of the machine's memory."""


@dataclass(frozen=True, slots=True)
class Face:
    """What composing needs of an avatar's frame.

    Attributes:
        pixels: the frame, or a part of it that holds the face rectangle.
        crop: the face, resized to the network's square with its border.
        keep: 1 where the original pixel stays, rectangle sized.
        rect: the face rectangle in ``pixels``.
        rule: how it was cut out.
    """

    pixels: NDArray[np.uint8]
    crop: NDArray[np.uint8]
    keep: NDArray[np.uint8] | None
    rect: Rect
    rule: CropRule

    def composed(self, region: NDArray[np.uint8], corner: tuple[int, int]) -> NDArray[np.uint8]:
        """A copy of ``pixels`` with ``region`` pasted in."""
        frame = self.pixels.copy()
        self.rule.compose(self.crop, region, corner, frame, self.rect, self.keep)
        return frame


class CpuBackend:
    """See ``engine.backends.base.Backend``; one per process.

    The interface alone has most of its methods; the others are a picture's steps, which share the
    caches. ``regions`` and ``compose`` are for parity tests, which look at the two halves of a
    frame by themselves.

    Args:
        threads: frames made at the same time; the processors this process may use by default.
        live: keep what does not depend on the audio from its first use on, not its second; and
            take few frames at a time, so that an urgent one does not find a queue.
        kernels: of the decoder's last stages, see ``decoder.choose_kernel``.

    Raises:
        BackendError: this processor cannot run those kernels.
    """

    name = "cpu"
    takes_sound = encodes = False
    device_memory = (0, 0)

    def __init__(
        self, threads: int | None = None, *, live: bool = False, kernels: str = "auto"
    ) -> None:
        self.kernel = choose_kernel(kernels)
        self.threads = threads or processors()
        self._sessions = Sessions()
        self._levels: ByteLru[dict[str, NDArray[np.float32]]] = ByteLru(
            within_memory(IMAGE_CACHE_BYTES), uses=1 if live else 2
        )
        self._pictures: ByteLru[NDArray[np.uint8]] = ByteLru(
            within_memory(PICTURE_CACHE_BYTES), uses=2
        )
        self._faces: ByteLru[Face] = ByteLru(within_memory(FACE_CACHE_BYTES))
        self._workers = started_pool(self.threads, "lipsync-cpu")
        self._live, self._closed = live, False
        self.cpu_time = CpuTime()
        self._sharing: list[CpuAvatar] = []
        self._most_shared = within_memory(SHARED_BYTES, SHARED_SHARE)

    @property
    def numerics(self) -> str:
        """The kernels of the decoder's last stages; empty for ONNX Runtime alone."""
        return self.kernel or ""

    @property
    def depth(self) -> int:
        """How many submitted frames keep the processors busy."""
        return self.threads + 1 if self._live else 2 * self.threads + 1

    def load(self, package: AvatarPackage) -> CpuAvatar:
        """Make an avatar ready (a fraction of a second).

        Raises:
            AvatarFormatError: its networks do not fit its manifest.
        """
        return CpuAvatar(package, self._sessions, self.kernel)

    def unload(self, avatar: LoadedAvatar) -> None:
        """Drop what the caches hold of an avatar."""
        mine = self._own(avatar)
        for cache in (self._levels, self._pictures, self._faces):
            cache.forget(mine)
        if mine.shared is not None:
            self._sharing.remove(mine)
            mine.shared.close()

    def share(self, avatar: LoadedAvatar, fd: int) -> None:
        """Keep image halves where other engines find them, and find theirs."""
        mine = self._own(avatar)
        count, size = mine.package.manifest.frame_count, mine.level_bytes
        mine.shared = FrameStore(fd, mine.identity, count, size)
        self._sharing.append(mine)

    warms = 1

    def warm(self, avatar: LoadedAvatar, frames: Sequence[tuple[int, Rect]]) -> int:
        """Fill the caches for some of the avatar's frames, while they have room."""
        mine = self._own(avatar)
        for done, (index, part) in enumerate(frames):
            if not self._has_room(mine, part):
                return done
            self._image_half(mine, index, self._face(mine, index, part))
        return len(frames)

    def _has_room(self, avatar: CpuAvatar, part: Rect) -> bool:
        side = avatar.package.manifest.crop
        pixels = part.width * part.height * 3 + side * side * 3
        levels = self._levels.used, self._levels.limit
        if avatar.shared is not None:
            levels = self._shared_used(), self._most_shared
        faces = self._faces.used, self._faces.limit
        wanted = (levels, avatar.level_bytes), (faces, 2 * pixels)
        return all(used + size <= AHEAD_SHARE * limit for (used, limit), size in wanted)

    @property
    def cache_bytes(self) -> dict[str, int]:
        """Bytes that the caches hold."""
        return {
            "image halves": self._levels.used,
            "image halves, shared": self._shared_used(),
            "pictures": self._pictures.used,
            "faces": self._faces.used,
        }

    def settle(self, timeout_s: float) -> bool:
        """Nothing is made beside the work."""
        return True

    def avatar_bytes(self, avatar: LoadedAvatar) -> tuple[int, int]:
        """Bytes that the caches hold of an avatar: in this process, and shared with others."""
        mine = self._own(avatar)
        caches = self._levels, self._pictures, self._faces
        shared = 0 if mine.shared is None else mine.shared.there * mine.level_bytes
        return sum(cache.used_by(mine) for cache in caches), shared

    def features(
        self, avatar: LoadedAvatar, mel_windows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Mel windows N x 16 x 80 to features N x 512 float32, each computed by itself."""
        mine = self._own(avatar)
        out = np.empty((len(mel_windows), FEATURE_SIZE), np.float32)

        def compute(first: int, step: int) -> None:
            with self.cpu_time.on("audio encoder"):
                for i in range(first, len(mel_windows), step):
                    mel = np.ascontiguousarray(mel_windows[i].T)[None, None]
                    out[i] = mine.audio_encoder.run(None, {"mel": mel})[0][0]

        # A sound that is new here needs 16 at once: this thread takes part, as do those for frames.
        helpers = min(self.threads - 1, len(mel_windows) - 1) if self._live else 0
        step = max(helpers, 0) + 1
        begun = [self._workers.submit(compute, first, step) for first in range(1, step)]
        compute(0, step)
        for future in begun:
            future.result()
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
        """Begin to make frames; each thread that made one calls ``finish(place, frame)``."""
        for job in jobs:
            self._check(job)
        return [
            self._workers.submit(lambda k, job: finish(k, self._frame(job)), k, job)
            for k, job in enumerate(jobs)
        ]

    def _check(self, job: RegionJob) -> None:
        self._own(job.avatar)
        check_job(job, self.takes_sound)

    def _region(self, job: RegionJob, face: Face | None = None) -> NDArray[np.uint8]:
        avatar = self._own(job.avatar)
        levels = self._image_half(avatar, job.avatar_frame, face)
        assert job.audio_block is not None
        audio = np.ascontiguousarray(job.audio_block, np.float32).reshape(1, *avatar.audio_shape)
        with self.cpu_time.on("decoder"):
            made = avatar.decode(levels, audio)
        if job.share == 1:
            return made
        crop = (face or self._face(avatar, job.avatar_frame, None)).crop
        (left, top), (height, width) = avatar.corner, made.shape[:2]
        own = crop[top : top + height, left : left + width].astype(np.float32)
        return np.rint(own + np.float32(job.share) * (made - own)).astype(np.uint8)

    def _frame(self, job: RegionJob) -> NDArray[np.uint8]:
        avatar = self._own(job.avatar)
        if job.part == SQUARE:
            return self._square(avatar, job)
        face = self._face(avatar, job.avatar_frame, job.part)
        made = self._region(job, face)
        with self.cpu_time.on("compose"):
            return face.composed(made, avatar.corner)

    def _square(self, avatar: CpuAvatar, job: RegionJob) -> NDArray[np.uint8]:
        if avatar.package.manifest.window is None and job.share == 1:
            return self._region(job)
        face = self._face(avatar, job.avatar_frame, avatar.package.rect(job.avatar_frame))
        made = self._region(job, face)
        (left, top), (height, width) = avatar.corner, made.shape[:2]
        crop = face.crop.copy()
        crop[top : top + height, left : left + width] = made
        return face.rule.inner(crop)

    def compose(
        self, avatar: LoadedAvatar, avatar_frame: int, region: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """The whole frame H x W x 3 uint8 RGB with ``region`` pasted in; the caller owns it."""
        mine = self._own(avatar)
        return self._face(mine, avatar_frame, None).composed(region, mine.corner)

    def close(self) -> None:
        """Stop the threads and free the caches; loaded avatars become unusable."""
        self._closed = True
        self._workers.shutdown(wait=True, cancel_futures=True)
        for cache in (self._levels, self._pictures, self._faces):
            cache.clear()

    def _own(self, avatar: LoadedAvatar) -> CpuAvatar:
        if self._closed:
            raise BackendError("the backend is closed")
        if not isinstance(avatar, CpuAvatar):
            raise TypeError("the avatar was loaded by another backend")
        return avatar

    def _face(self, avatar: CpuAvatar, index: int, part: Rect | None) -> Face:
        package = avatar.package

        def face(pixels: NDArray[np.uint8], rect: Rect) -> Face:
            crop, rule = package.crop(index, pixels, rect), package.manifest.crop_rule
            return Face(pixels, crop, package.mask(index), rect, rule)

        def make() -> tuple[Face, int]:
            assert part is not None
            with self.cpu_time.on("avatar's frame"):
                whole = self._pictures.find((avatar, index))
                picture = package.picture(index) if whole is None else whole
                made = face(picture[part.slices].copy(), package.rect(index).seen_from(part))
            masked = 0 if made.keep is None else made.keep.nbytes
            return made, made.pixels.nbytes + made.crop.nbytes + masked

        if part is None:
            return face(self._picture(avatar, index), package.rect(index))
        return self._faces.get((avatar, index, part), make)

    def _picture(self, avatar: CpuAvatar, index: int) -> NDArray[np.uint8]:
        def make() -> tuple[NDArray[np.uint8], int]:
            picture = avatar.package.picture(index)
            return picture, picture.nbytes

        return self._pictures.get((avatar, index), make)

    def _image_half(
        self, avatar: CpuAvatar, index: int, face: Face | None
    ) -> dict[str, NDArray[np.float32]]:
        """x1 .. of an avatar's frame, each 1 x C x H x W."""

        def make() -> tuple[dict[str, NDArray[np.float32]], int]:
            crop = (face or self._face(avatar, index, None)).crop
            with self.cpu_time.on("image half"):
                return self._made_levels(avatar, crop)

        shared = avatar.shared
        if shared is None:
            return self._levels.get((avatar, index), make)
        record = shared.find(index)
        if record is None:
            made = self._levels.take((avatar, index)) or make()[0]
            room = self._shared_used() + avatar.level_bytes <= self._most_shared
            if not (room and shared.put(index, [made[name].data for name in avatar.levels])):
                return self._levels.get((avatar, index), lambda: (made, avatar.level_bytes))
            record = shared.find(index)
            assert record is not None
        return avatar.levels_in(record)

    def _shared_used(self) -> int:
        return sum(
            avatar.shared.there * avatar.level_bytes
            for avatar in list(self._sharing)
            if avatar.shared is not None
        )

    @staticmethod
    def _made_levels(
        avatar: CpuAvatar, crop: NDArray[np.uint8]
    ) -> tuple[dict[str, NDArray[np.float32]], int]:
        image = avatar.package.manifest.crop_rule.image_input(crop)[None]
        made = avatar.image.run(list(avatar.levels), {"image": image})
        return dict(zip(avatar.levels, made, strict=True)), avatar.level_bytes
