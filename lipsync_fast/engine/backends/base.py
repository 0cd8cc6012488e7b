# SPDX-License-Identifier: Apache-2.0
"""What a backend is: the only place where networks run and pixels are made.

Nothing above this interface knows which backend runs. Every backend passes the same parity tests.
A backend may be used from one thread at a time; but ``load``, ``unload`` and ``warm`` may be
called by any thread at any time. ``submit`` returns at once, all else blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.spent import Spent

Result = TypeVar("Result")
Part = tuple[int, int, int, int]
SQUARE: Part = (0, 0, 0, 0)
AUDIO_BLOCK_ROWS = 16
FEATURE_SIZE = 512


class LoadedAvatar(Protocol):
    """An avatar made ready by a backend (networks, caches); opaque to callers but for this."""

    @property
    def package(self) -> AvatarPackage: ...


@dataclass(frozen=True, slots=True)
class RegionJob:
    """One picture to make.

    Attributes:
        avatar: as ``Backend.load`` gave it.
        frame_index: which of the avatar's frames, 0 <= index < frame_count.
        audio_block: 16 x 512 float32, the feature vectors that the frame sees, oldest first.
        share: how much of the generated mouth is shown, 0..1; the rest is the avatar's own. For
            the frames between idle and speech.
        part: what ``submit`` makes of it: the whole frame (None); a part of it that holds the face
            rectangle, x1, y1, x2, y2 in pixels; or ``SQUARE``, the generated square alone, as the
            network made it (with a ``manifest.window``: put into the avatar's own square).
    """

    avatar: LoadedAvatar
    frame_index: int
    audio_block: NDArray[np.float32]
    share: float = 1.0
    part: Part | None = None


class Backend(Protocol):
    """Runs the networks and the image path on one device."""

    @property
    def name(self) -> str:
        """Short name of the device it runs on, such as ``cpu`` or ``cuda:0``."""
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

    def warm(self, avatar: LoadedAvatar, frame_index: int, part: Part) -> bool:
        """Compute now what jobs of an avatar's frame need besides the audio; in any thread.

        Args:
            part: as in the jobs to come.

        Returns:
            False where there is no room to keep it: then nothing is done.
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

    @property
    def spent(self) -> Spent:
        """The host's processor time; whoever uses the backend adds what it spends itself."""
        ...

    def features(
        self, avatar: LoadedAvatar, mel_windows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Audio features: mel windows N x 16 x 80 (rows of 12.5 ms) to N x 512 float32."""
        ...

    def regions(self, jobs: Sequence[RegionJob]) -> list[NDArray[np.uint8]]:
        """The generated pictures, H x W x 3 uint8 RGB each, in the order of ``jobs``.

        Jobs of several avatars may be mixed; height and width are those of each avatar's
        ``manifest.window``, or ``manifest.region`` where it has none.
        """
        ...

    @property
    def depth(self) -> int:
        """How many submitted frames keep the device busy."""
        ...

    def submit(
        self,
        jobs: Sequence[RegionJob],
        finish: Callable[[int, NDArray[np.uint8]], Result],
    ) -> list[Future[Result]]:
        """Begin to make frames: ``regions``, ``compose``, then ``finish``, for each job.

        Args:
            jobs: what to make, the most urgent first.
            finish: gets the job's place in ``jobs`` and its frame, or the part of it that the job
                asks for (H x W x 3 uint8 RGB, its own to keep), in a thread of the backend; what it
                returns is the future's result.

        An avatar's damaged frame raises ``AvatarFormatError`` there. ``close`` cancels those that
        have not begun.
        """
        ...

    def compose(
        self, avatar: LoadedAvatar, frame_index: int, region: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """The whole frame H x W x 3 uint8 RGB with ``region`` pasted in; the caller owns it."""
        ...

    def close(self) -> None:
        """Free what it holds; loaded avatars become unusable."""
        ...
