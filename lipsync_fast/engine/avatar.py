# SPDX-License-Identifier: Apache-2.0
"""An avatar of an engine: its package, what the backend has made of it, and who uses it."""

from __future__ import annotations

import os
from pathlib import Path

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import BlockCache, block_starts
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.signing import TrustedKeys, open_signed
from lipsync_fast.engine.backends.base import Backend, LoadedAvatar, Sound
from lipsync_fast.errors import AvatarError
from lipsync_fast.ipc.messages import Look, Speech
from lipsync_fast.machine import leaves_descriptors, too_many_avatars

FURTHEST_FRAME = 1 << 40
"""Some 1,400 years of speech."""


class RegisteredAvatar:
    """An avatar that jobs may name; closed when it was taken out and its last job has ended.

    Attributes:
        users: jobs, and tasks in the background, that need it.
        failures: jobs that have failed as no job of a sound avatar does.
        used: a job has needed it.
        retired: it was taken out, and is closed when nobody needs it.
    """

    def __init__(self, package: AvatarPackage, loaded: LoadedAvatar, blocks: BlockCache) -> None:
        self.package, self.loaded, self.blocks = package, loaded, blocks
        self.users = self.failures = 0
        self.used = self.retired = False
        self.content = b""
        self.scopes: dict[Look, bytes] = {}
        """What its frames are known by among those that are kept (``frame_cache.Scopes``)."""
        self.prepared = self.warmed = 0
        """Frames, of the first ones, for which the encoder and the backend have been got ready."""

    @classmethod
    def open(
        cls, backend: Backend, path: str | os.PathLike[str], keys: TrustedKeys | None = None
    ) -> RegisteredAvatar:
        """Open and load an avatar; in any thread. With ``keys``, one of them must have signed it.

        Raises:
            AvatarError: it cannot be used.
        """
        package = open_signed(Path(path), keys)
        try:
            with open(os.devnull, "rb") as last:
                if not leaves_descriptors(last.fileno()):
                    raise AvatarError(f"{path}: {too_many_avatars()}")
            loaded = backend.load(package)
        except BaseException:
            package.close()
            raise
        return cls(package, loaded, BlockCache(lambda mel: backend.features(loaded, mel)))

    @property
    def unprepared(self) -> bool:
        """Whether the encoder is to get frames ready."""
        return self.prepared < self.package.manifest.frame_count

    @property
    def unwarmed(self) -> bool:
        """Whether the backend is to: that is large, and only once the avatar is used."""
        return self.used and self.warmed < self.package.manifest.frame_count

    def audio_block(self, front: str, speech: Speech, pcm: F32) -> F32:
        """The audio block of a frame of a front's sound, for a backend that is given blocks.

        Args:
            pcm: what the frame sees of its sound, 16 kHz.

        Raises:
            ValueError: the samples are not those that the frame sees.
        """
        starts = self.window_starts(speech)
        return self.blocks.block((front, speech.stream), starts, pcm, speech.first)

    def sound(self, front: str, speech: Speech, pcm: F32) -> Sound:
        """The same for a backend that takes sound: it makes the block, and checks the samples.

        Raises:
            ValueError: the frame's number cannot be.
        """
        starts = self.window_starts(speech)
        return Sound((front, speech.stream), tuple(starts), pcm, speech.first)

    def window_starts(self, speech: Speech) -> list[int]:
        """Where the mel windows that a frame sees begin (``audio.windows.block_starts``).

        Raises:
            ValueError: the frame's number cannot be.
        """
        if speech.frame > FURTHEST_FRAME:
            raise ValueError(f"frame {speech.frame}: there are no more than {FURTHEST_FRAME}")
        return block_starts(speech.frame, self.package.manifest.audio, speech.samples)
