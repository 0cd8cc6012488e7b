# SPDX-License-Identifier: Apache-2.0
"""What a backend is: the only place where networks run and pixels are made.

Nothing above this interface knows which backend runs. Every backend passes the same parity tests.
A backend may be used from one thread at a time; but ``load``, ``unload`` and ``warm`` may be
called by any thread at any time. ``submit`` returns at once, all else blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.windows import FEATURE_SIZE
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.geometry import EMPTY, Rect

Result = TypeVar("Result")
SQUARE = EMPTY
"""As a job's part: no part of the frame, but the generated square (``RegionJob.part``)."""


class LoadedAvatar(Protocol):
    """An avatar made ready by a backend (networks, caches); opaque to callers but for this."""

    @property
    def package(self) -> AvatarPackage: ...


@dataclass(frozen=True, slots=True)
class Sound:
    """What a frame sees of its sound; for backends that take sound (``Backend.takes_sound``).

    Attributes:
        stream: a key that no other sound has; its samples never change.
        starts: for each of its vectors, oldest first, the mel row at which its window begins;
            -1 for a vector of zeros (``audio.windows.block_starts``).
        pcm: 16 kHz mono float32, the stream's samples from ``first`` on, back to one before the
            first window's, or the stream's first one. Where they end, so does the sound.
        first: number of the first sample.
    """

    stream: Hashable
    starts: tuple[int, ...]
    pcm: NDArray[np.float32]
    first: int


@dataclass(frozen=True, slots=True)
class Encode:
    """How a part of a picture is to be coded; for backends that encode (``Backend.encodes``).

    Attributes:
        box: in the job's part.
        quality: of the JPEG, 1..100.
        interval: minimum coded units (16 x 16 pixels) between two restart markers.
    """

    box: Rect
    quality: int
    interval: int


@dataclass(frozen=True, slots=True)
class Coded:
    """The restart segments of a baseline JPEG (4:2:0, standard tables), without any marker.

    Attributes:
        data: their bytes, one behind the other.
        offsets: where each begins in ``data``, and the end of the last one (n + 1 numbers).
    """

    data: memoryview
    offsets: list[int]


@dataclass(frozen=True, slots=True)
class RegionJob:
    """One picture to make.

    Attributes:
        avatar: as ``Backend.load`` gave it.
        avatar_frame: which of the avatar's frames, 0 <= index < frame_count.
        audio_block: vectors x 512 float32 (``manifest.audio.vectors``), what the frame sees, oldest
            first; None where ``sound`` is given.
        share: how much of the generated mouth is shown, 0..1; the rest is the avatar's own. For
            the frames between idle and speech.
        part: what ``submit`` makes of it: the whole frame (None); a part of it that holds the face
            rectangle; or ``SQUARE``, the generated square alone, as the
            network made it (with a ``manifest.window``: put into the avatar's own square).
        sound: in place of ``audio_block``, for a backend that takes sound.
        encode: for a backend that encodes: this box of the part, coded, is wanted, not pixels.
    """

    avatar: LoadedAvatar
    avatar_frame: int
    audio_block: NDArray[np.float32] | None
    share: float = 1.0
    part: Rect | None = None
    sound: Sound | None = None
    encode: Encode | None = None


class Backend(Protocol):
    """Runs the networks and the image path on one device."""

    @property
    def name(self) -> str:
        """Short name of the device it runs on, such as ``cpu`` or ``cuda:0``."""
        ...

    @property
    def numerics(self) -> str:
        """What pictures' bits depend on besides their jobs, in a word: kernels, precision."""
        ...

    @property
    def threads(self) -> int | None:
        """Frames that the host's processors make at a time; None on any other device."""
        ...

    @property
    def takes_sound(self) -> bool:
        """Whether jobs may carry their sound in place of an audio block."""
        ...

    @property
    def encodes(self) -> bool:
        """Whether jobs may ask for coded segments in place of pixels."""
        ...

    def load(self, package: AvatarPackage) -> LoadedAvatar:
        """Make an avatar ready.

        Raises:
            AvatarFormatError: its networks do not fit its manifest.
        """
        ...

    def unload(self, avatar: LoadedAvatar) -> None:
        """Free what is held of an avatar. Its jobs must have ended."""
        ...

    @property
    def warms(self) -> int:
        """How many frames ``warm`` is best given at a time."""
        ...

    def warm(self, avatar: LoadedAvatar, frames: Sequence[tuple[int, Rect]]) -> int:
        """Compute now what jobs of an avatar's frames need besides the audio; in any thread.

        Args:
            frames: their indexes, each with the part that the jobs to come will have.

        Returns:
            For how many, from the first one on, there is room to keep it; nothing is done for the
            others.
        """
        ...

    def share(self, avatar: LoadedAvatar, fd: int) -> None:
        """Keep what an avatar's frames need besides the audio in memory shared with other engines.

        Args:
            fd: see ``ipc.frame_store``; closed by the caller. A backend on a device ignores it.

        Raises:
            RingError: it is another avatar's; then nothing is shared.
        """
        ...

    @property
    def cache_bytes(self) -> dict[str, int]:
        """Bytes that are held to save work, by what they are."""
        ...

    def avatar_bytes(self, avatar: LoadedAvatar) -> tuple[int, int]:
        """Bytes of these that are an avatar's: in caches here, and shared with other engines."""
        ...

    @property
    def device_memory(self) -> tuple[int, int]:
        """Bytes in use on the device, by whomever, and in all; 0, 0 without memory of its own."""
        ...

    @property
    def cpu_time(self) -> CpuTime:
        """The host's processor time; whoever uses the backend adds what it spends itself."""
        ...

    def features(
        self, avatar: LoadedAvatar, mel_windows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Audio features: mel windows N x 16 x 80 (rows of 12.5 ms) to N x 512 float32."""
        ...

    @property
    def depth(self) -> int:
        """How many submitted frames keep the device busy."""
        ...

    def settle(self, timeout_s: float) -> bool:
        """Wait for what makes loaded avatars fast and is made beside the work.

        Returns:
            False where that takes longer.
        """
        ...

    def submit(
        self,
        jobs: Sequence[RegionJob],
        finish: Callable[[int, Any], Result],
    ) -> list[Future[Result]]:
        """Begin to make frames: generate, compose, then ``finish``, for each job.

        Args:
            jobs: what to make, the most urgent first.
            finish: gets the job's place in ``jobs`` and its frame, or the part of it that the job
                asks for (H x W x 3 uint8 RGB, its own to keep), in a thread of the backend; what it
                returns is the future's result. A job with ``encode`` gets ``Coded``, or the pixels
                of its part all the same where they cannot be coded on the device.

        Jobs may be of several avatars; they are made in batches as the device likes them. An
        avatar's damaged frame raises ``AvatarFormatError`` in the future. ``close`` cancels those
        that have not begun.

        Raises:
            DeviceLostError: the device cannot be used any more, nor can this backend; the same
                error ends jobs that had begun.
        """
        ...

    def close(self) -> None:
        """Free what it holds; loaded avatars become unusable."""
        ...


def check_job(job: RegionJob, takes_sound: bool) -> None:
    """Refuse a job whose block or share cannot be.

    Args:
        takes_sound: whether it may have its sound in place of a block (``Backend.takes_sound``).

    Raises:
        ValueError: what is wrong.
    """
    shape = None if job.audio_block is None else job.audio_block.shape
    wanted = (job.avatar.package.manifest.audio.vectors, FEATURE_SIZE)
    if not (takes_sound and job.sound is not None) and shape != wanted:
        raise ValueError(f"audio block of shape {shape}, expected {wanted}")
    if not 0 <= job.share <= 1:
        raise ValueError(f"share {job.share}: expected 0 to 1")
