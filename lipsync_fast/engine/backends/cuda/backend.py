# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend: from a sound's samples to a picture's coded bytes without leaving the device.

    submit ─► faces there? ─ no ─► loaders ─┐            (threads: decode, upload)
                 yes ─────────────────────────┴─► launcher ─► device ─► completion ─► finish

See ``launcher`` for the threads, ``batch`` for what the device does, ``budget`` for its memory.
Pictures' bits depend on the batch by no more than what the convolutions' algorithms differ in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from lipsync_fast.audio.windows import FEATURE_SIZE
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import SQUARE, Coded, LoadedAvatar, RegionJob, Result
from lipsync_fast.engine.backends.cuda import sounds
from lipsync_fast.engine.backends.cuda.avatar import CudaAvatar, EncoderMemory, HostNets, Shapes
from lipsync_fast.engine.backends.cuda.batch import compute_halves
from lipsync_fast.engine.backends.cuda.budget import Budget, lost
from lipsync_fast.engine.backends.cuda.device import DTYPES, Device, Fault, Precision
from lipsync_fast.engine.backends.cuda.graphs import SIZES, cover, most_frames
from lipsync_fast.engine.backends.cuda.images import Face, Faces, Images, Share
from lipsync_fast.engine.backends.cuda.launcher import Launcher, fail
from lipsync_fast.engine.backends.cuda.nets import Statics
from lipsync_fast.engine.backends.cuda.tasks import Kind, Task, cancelled_with, check, finish_all
from lipsync_fast.engine.backends.cuda.warming import Warming
from lipsync_fast.engine.caches import AHEAD_SHARE, ByteLru, Key, within_memory
from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.errors import AvatarError, BackendError, DeviceLostError
from lipsync_fast.geometry import Rect
from lipsync_fast.priority import started_pool

LOADERS = 4
"""Threads that bring avatars' frames onto the device."""
FINISHERS = 4
"""Threads in which pictures are finished: spliced, and coded where the device has not."""
WARMS = 64
"""Frames that are brought onto the device together: a pipeline that decodes them is worth it."""
PICTURE_BYTES = 256 << 20
"""Most bytes of whole frames on the host, where whole frames are asked for."""
Made = TypeVar("Made")


class CudaBackend:
    """See ``engine.backends.base.Backend``; one per process.

    The interface alone has most of its methods; the others lead a job to the launcher. ``regions``
    and ``compose`` are for parity tests, which look at the two halves of a frame by themselves.

    Args:
        device: it runs on.
        precision: of the networks; what pixels are made of is float32 in any case.
        live: of no meaning here: what does not depend on the audio is kept from its first use on.
        sizes: of batches.

    Raises:
        BackendError: there is not even enough memory to begin.
    """

    takes_sound = encodes = True
    threads = None

    def __init__(
        self,
        device: Device,
        *,
        precision: Precision = "fp16",
        live: bool = False,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        if precision not in DTYPES:
            raise BackendError(f"precision {precision!r}: expected one of {', '.join(DTYPES)}")
        self.device, self.dtype, self._sizes = device, DTYPES[precision], tuple(sizes)
        self.budget = Budget(device)
        self.cpu_time = CpuTime()
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._setup = device.stream()
        self._count, self._closed = 0, False
        self._avatars: list[CudaAvatar] = []
        self._statics: WeakValueDictionary[Shapes, Statics] = WeakValueDictionary()
        self._share = Share(self.budget.images)
        self._faces = Faces(device, self.budget.faces)
        self._pictures: ByteLru[NDArray[np.uint8]] = ByteLru(within_memory(PICTURE_BYTES), uses=2)
        self._sounds, self._encoder_memory, tables = self.budget.with_room(
            self._first, "the first tables"
        )
        self.launcher = Launcher(
            device, self.budget, self._sounds, tables, self._finished, self.cpu_time
        )
        self.warming = Warming(self.budget)
        self._loaders = started_pool(LOADERS, "lipsync-frames")
        self._finishers = started_pool(FINISHERS, "lipsync-finish")
        # What can be made again at the least cost goes first.
        self.budget.may_shed(self._faces.shed)
        self.budget.may_shed(self._shed_images)

    def _first(self) -> tuple[sounds.Sounds, EncoderMemory, torch.Tensor]:
        where, kernels = self.device.where, self.device.kernels
        tables = np.stack([kernels.quant_tables(quality) for quality in range(1, 101)])
        with self.device.on(self._setup):
            made = (
                sounds.Sounds(where, self.dtype),
                EncoderMemory.make(max(SIZES), self.dtype, where),
                torch.from_numpy(tables).to(where),
            )
            self._setup.synchronize()
        return made

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name

    @property
    def numerics(self) -> str:
        """The networks' precision."""
        return str(self.dtype)

    @property
    def depth(self) -> int:
        """Two of the largest batches: one is computed, the other one waits."""
        return 2 * max(self._sizes)

    # ------------------------------------------------------------ avatars
    def load(self, package: AvatarPackage) -> CudaAvatar:
        """Make an avatar ready for its first frame; larger batches follow beside the work.

        Raises:
            AvatarFormatError: its networks do not fit its manifest.
            AvatarError: the device has no room for it.
            DeviceLostError: the device has failed.
        """
        shapes = Shapes.of(package)
        nets = HostNets.read(package, shapes)
        make = partial(self._load, package, shapes, nets)
        try:
            with self._loading:
                avatar = self.budget.with_room(make, "this avatar")
        except DeviceLostError as error:
            self.launcher.lose(error)
            raise
        except BackendError as error:
            raise AvatarError(f"{package.path}: {error}") from None
        with self._lock:
            self._avatars.append(avatar)
        self.warming.add(avatar)
        return avatar

    def _load(self, package: AvatarPackage, shapes: Shapes, nets: HostNets) -> CudaAvatar:
        levels, frames = dict(shapes.levels), package.manifest.frame_count
        images = self._call(lambda: Images(self.device, levels, self.dtype, frames, self._share))
        try:
            with self.device.on(self._setup):
                avatar = CudaAvatar(
                    package,
                    self.device,
                    self.dtype,
                    nets,
                    self._statics_of(shapes),
                    self._encoder_memory,
                    self._sizes_of(shapes),
                    images,
                )
                self._setup.synchronize()
            avatar.capture_smallest()
        except BaseException:
            self._call(images.free)
            raise
        return avatar

    def settle(self, timeout_s: float) -> bool:
        """Wait for all graphs of the avatars that are loaded; False where that takes longer."""
        return self.warming.wait(timeout_s)

    def _sizes_of(self, shapes: Shapes) -> list[int]:
        return most_frames(self.budget.batch, shapes.frame_bytes(self.dtype), 1.0, self._sizes)

    def _statics_of(self, shapes: Shapes) -> Statics:
        found = self._statics.get(shapes)
        if found is None:
            most, where = max(self._sizes_of(shapes)), self.device.where
            levels, sides = dict(shapes.levels), (shapes.region, shapes.audio, shapes.made)
            found = self._statics[shapes] = Statics.make(levels, *sides, most, self.dtype, where)
        return found

    def unload(self, avatar: LoadedAvatar) -> None:
        """Free what is held of an avatar. Its jobs must have ended."""
        mine = self._own(avatar)
        self.warming.forget(mine)

        def drop() -> None:
            self._sounds.forget(mine)
            mine.images.free()

        with self._lock:
            self._avatars.remove(mine)
        self._call(drop)
        self._faces.forget(mine)
        self._pictures.forget(mine)

    def share(self, avatar: LoadedAvatar, fd: int) -> None:
        """Image halves lie on the device: there is nothing to share."""

    warms = WARMS

    def warm(self, avatar: LoadedAvatar, frames: Sequence[tuple[int, Rect]]) -> int:
        """Bring frames onto the device, while the caches have room, and make their image halves."""
        mine, room, used = self._own(avatar), 0, self._faces.used
        for _, part in frames:
            used += 3 * (part.width * part.height + mine.crop * mine.crop)
            if used > AHEAD_SHARE * self._faces.limit:
                break
            room += 1
        wanted: dict[Key, int] = {(mine, index, part): index for index, part in frames[:room]}
        faces = self._faces.load_some(mine.package, wanted)
        done = 0
        for index, face in zip(wanted.values(), faces, strict=True):
            # One at a time: a batch of frames that is asked for meanwhile waits for one at most.
            if not mine.images.may_prepare(AHEAD_SHARE):
                break
            self._call(partial(self._make_half, mine, index, face))
            done += 1
        return done

    def _make_half(self, avatar: CudaAvatar, index: int, face: Face) -> None:
        number = self.launcher.begun  # of the last batch: what it reads is not given away
        halves = avatar.images.plan([index], number, self.launcher.ended)
        if not halves.made:
            return
        stream = self.launcher.streams.compute.cuda_stream
        try:
            compute_halves(self.device, stream, avatar, [face.crop], halves.slots)
        except BaseException:
            avatar.images.undo(halves)
            raise

    def avatar_bytes(self, avatar: LoadedAvatar) -> tuple[int, int]:
        """Bytes that the caches hold of an avatar, and nothing that others share."""
        mine = self._own(avatar)
        return mine.images.used + self._faces.used_by(mine) + self._pictures.used_by(mine), 0

    def _shed_images(self) -> int:
        with self._lock:
            avatars = list(self._avatars)
        return self.launcher.call(lambda: sum(avatar.images.shed() for avatar in avatars))

    @property
    def cache_bytes(self) -> dict[str, int]:
        """Bytes that the caches hold, on the device but for pictures."""
        with self._lock:
            halves = sum(avatar.images.used for avatar in self._avatars)
        return {
            "image halves": halves,
            "faces": self._faces.used,
            "audio features": self._sounds.used,
            "pictures": self._pictures.used,
        }

    @property
    def device_memory(self) -> tuple[int, int]:
        """Bytes in use on the device, and in all.

        Raises:
            DeviceLostError: it does not answer; so an engine that has nothing to do finds out, too.
        """
        try:
            free, total = self.device.memory()
        except RuntimeError as error:
            raise lost(self.device, error) from error
        return total - free, total

    # ------------------------------------------------------------ features, regions, compose
    def features(
        self, avatar: LoadedAvatar, mel_windows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Mel windows N x 16 x 80 to features N x 512 float32."""
        mine = self._own(avatar)
        out = np.empty((len(mel_windows), FEATURE_SIZE), np.float32)
        mel = np.ascontiguousarray(mel_windows.transpose(0, 2, 1))[:, None]

        def make() -> None:
            (given,), (made,) = mine.encoder.inputs, mine.encoder.outputs
            at = 0
            for size in cover(len(mel), mine.encoder.ready):
                count = min(size, len(mel) - at)
                given[:count].copy_(torch.from_numpy(mel[at : at + count]))
                mine.encoder.run(size)
                out[at : at + count] = made[:count].float().cpu().numpy()
                at += count

        self._call(make)
        return out

    def regions(self, jobs: Sequence[RegionJob]) -> list[NDArray[np.uint8]]:
        """The generated squares (or windows), H x W x 3 uint8 RGB, in the order of ``jobs``."""
        futures = self._submit(jobs, lambda _, image: image, Kind.REGION)
        return [future.result() for future in futures]

    def compose(
        self, avatar: LoadedAvatar, avatar_frame: int, region: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """The whole frame H x W x 3 uint8 RGB with ``region`` pasted in, on the host."""
        mine = self._own(avatar)
        package = mine.package
        frame = self._picture(mine, avatar_frame).copy()
        crop = package.crop(avatar_frame, frame)
        rect, mask = package.rect(avatar_frame), package.mask(avatar_frame)
        mine.rule.compose(crop, region, mine.corner, frame, rect, mask)
        return frame

    def _picture(self, avatar: CudaAvatar, index: int) -> NDArray[np.uint8]:
        def make() -> tuple[NDArray[np.uint8], int]:
            picture = avatar.package.picture(index)
            return picture, picture.nbytes

        return self._pictures.get((avatar, index), make)

    # ------------------------------------------------------------ frames
    def submit(
        self, jobs: Sequence[RegionJob], finish: Callable[[int, Any], Result]
    ) -> list[Future[Result]]:
        """Begin to make frames."""
        return self._submit(jobs, finish, None)

    def _submit(
        self, jobs: Sequence[RegionJob], finish: Callable[[int, Any], Result], kind: Kind | None
    ) -> list[Future[Result]]:
        for job in jobs:
            self._own(job.avatar)
            check(job)
        if self.launcher.lost is not None:
            raise self.launcher.lost
        futures: list[Future[Result]] = []
        ready: list[Task] = []
        for place, job in enumerate(jobs):
            future: Future[Result] = Future()
            futures.append(future)
            try:
                task = self._task(place, job, finish, kind, future)
            except Exception as error:  # of this frame alone: not there, or its sound cannot be
                future.set_exception(error)
                continue
            task.face = self._faces.find((task.avatar, job.avatar_frame, task.part))
            if task.face is not None:
                ready.append(task)
            else:
                loading = self._loaders.submit(self._load_face, task)
                loading.add_done_callback(partial(cancelled_with, task))
        self.launcher.add(ready)
        return futures

    def _task(
        self,
        place: int,
        job: RegionJob,
        finish: Callable[[int, Any], Any],
        kind: Kind | None,
        future: Future[Any],
    ) -> Task:
        avatar = self._own(job.avatar)
        if job.sound is not None:
            sounds.check(job.sound, avatar.vectors)
        self._count += 1
        rect = avatar.package.rect(job.avatar_frame)
        if kind is None:
            kind = Kind.SQUARE if job.part == SQUARE else Kind.PART
        whole = job.part is None and kind == Kind.PART
        part = job.part if kind == Kind.PART and job.part is not None else rect

        def done(made: NDArray[np.uint8] | Coded) -> Any:
            if whole:  # only the face was made: the rest of the frame is the host's
                assert not isinstance(made, Coded)
                frame = self._picture(avatar, job.avatar_frame).copy()
                frame[rect.slices] = made
                made = frame
            return finish(place, made)

        if whole and job.encode is not None:
            job = replace(job, encode=None)
        return Task(self._count, job, avatar, part, kind, done, future)

    def _load_face(self, task: Task) -> None:  # in a loader's thread
        key = (task.avatar, task.job.avatar_frame, task.part)
        try:
            with self.cpu_time.on("avatar's frame"):
                load = lambda: self._faces.load(key, task.avatar.package, key[1], key[2])  # noqa: E731
                task.face = self.budget.with_room(load, "an avatar's frame")
        except Exception as error:
            if isinstance(error, DeviceLostError):
                self.launcher.lose(error)
            fail([task], error)
        else:
            self.launcher.add([task])

    def _finished(self, tasks: list[Task], made: list[Any]) -> None:  # in the completion thread
        """What is coded already is finished at once by one thread, the rest each by itself."""
        pairs = list(zip(tasks, made, strict=True))
        together = [(task, one) for task, one in pairs if isinstance(one, Coded)]
        if together:
            self._finishers.submit(finish_all, together)
        for task, one in pairs:
            if not isinstance(one, Coded):
                self._finishers.submit(finish_all, [(task, one)])

    def _own(self, avatar: LoadedAvatar) -> CudaAvatar:
        if self._closed:
            raise BackendError("the backend is closed")
        if not isinstance(avatar, CudaAvatar):
            raise TypeError("the avatar was loaded by another backend")
        return avatar

    def _call(self, act: Callable[[], Made]) -> Made:
        """Have the launcher do something; a failed device is known from then on."""
        try:
            return self.launcher.call(act)
        except DeviceLostError:
            raise
        except Exception as error:
            if self.device.fault(error) is Fault.LOST:
                failed = lost(self.device, error)
                self.launcher.lose(failed)
                raise failed from error
            raise

    def close(self) -> None:
        """Finish what is on the device, cancel the rest, and free all."""
        if self._closed:
            return
        self._closed = True
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self.warming.close()
        self.launcher.close()
        self._finishers.shutdown(wait=True)
        self._faces.shed()
        self._pictures.clear()
        with self._lock:
            self._avatars.clear()
        self.device.release_unused()
