# SPDX-License-Identifier: Apache-2.0
"""What an engine serves: avatars to fronts; and the pictures that jobs ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.windows import BlockCache, block_starts
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.signing import TrustedKeys, open_signed
from lipsync_fast.engine.backends.base import (
    SQUARE,
    Backend,
    Coded,
    LoadedAvatar,
    RegionJob,
    Sound,
)
from lipsync_fast.engine.front_link import FrontLink
from lipsync_fast.engine.splice import FrameEncoder, Variant, how_coded
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Content, Job, Look, Speech

Made = tuple[bytes, Rect]
"""A picture's JPEG, and where it lies in the avatar's frame."""
FURTHEST_FRAME = 1 << 40
"""Some 1,400 years of speech."""


class Served:
    """An avatar that jobs may name; closed when it was taken out and its last job has ended."""

    def __init__(self, package: AvatarPackage, loaded: LoadedAvatar, blocks: BlockCache) -> None:
        self.package, self.loaded, self.blocks = package, loaded, blocks
        self.users = 0
        self.used = self.retired = False
        self.content = b""
        self.scopes: dict[Look, bytes] = {}
        """What its frames are known by among those that are kept (``known.Scopes``)."""
        self.prepared = self.warmed = 0
        """Frames, of the first ones, for which the encoder and the backend have been got ready."""

    @classmethod
    def open(
        cls, backend: Backend, path: str | os.PathLike[str], keys: TrustedKeys | None = None
    ) -> Served:
        """Open and load an avatar; in any thread. With ``keys``, one of them must have signed it.

        Raises:
            AvatarError: it cannot be used.
        """
        package = open_signed(Path(path), keys)
        try:
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

    def done_chores(self) -> None:
        """Prepare no more."""
        self.prepared = self.warmed = self.package.manifest.frame_count

    def block(self, lane: str, spoken: SpokenPicture) -> NDArray[np.float32]:
        """The audio block of a job with speech.

        Raises:
            ValueError: the samples are not those that the frame sees.
        """
        speech, starts = spoken.speech, self.starts(spoken)
        return self.blocks.block((lane, speech.stream), starts, spoken.pcm, speech.first)

    def sound(self, lane: str, spoken: SpokenPicture) -> Sound:
        """The same for a backend that hears: that makes the block of it, and checks the samples.

        Raises:
            ValueError: the frame's number cannot be.
        """
        speech, starts = spoken.speech, self.starts(spoken)
        return Sound((lane, speech.stream), tuple(starts), spoken.pcm, speech.first)

    def starts(self, spoken: SpokenPicture) -> list[int]:
        """Where the mel windows that a frame sees begin (``audio.windows.block_starts``).

        Raises:
            ValueError: the frame's number cannot be.
        """
        frame = spoken.speech.frame
        if frame > FURTHEST_FRAME:
            raise ValueError(f"frame {frame}: there are no more than {FURTHEST_FRAME}")
        return block_starts(frame, self.package.manifest.audio, spoken.speech.samples)


@dataclass(frozen=True, slots=True)
class OwnPicture:
    """The avatar's own picture is wanted: nothing is to be generated."""


@dataclass(frozen=True, slots=True)
class SpokenPicture:
    """A picture with a generated mouth is wanted.

    Attributes:
        speech: where the frame lies in its sound.
        pcm: what it sees of that sound, 16 kHz mono float32.
    """

    speech: Speech
    pcm: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CachedPicture:
    """One with speech that was found among the frames that are kept: no network runs for it."""


@dataclass(order=True, slots=True)
class Waiting:
    """A job that was taken; ordered by deadline, then by arrival."""

    deadline_ns: int
    arrival: int
    lane: FrontLink = field(compare=False)
    job: Job = field(compare=False)
    avatar: Served = field(compare=False)
    picture: OwnPicture | SpokenPicture | CachedPicture = field(compare=False)
    taken_ns: int = field(compare=False)


class Pictures:
    """From jobs to encoded pictures and where they lie."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self.encoder = encoder

    def spoken(
        self,
        avatar: Served,
        job: Job,
        share: float,
        heard: NDArray[np.float32] | Sound,
        encodes: bool = False,
    ) -> tuple[RegionJob, Callable[[NDArray[np.uint8] | Coded], Made]]:
        """What the backend is to make of a job, and what to make of that (in its threads).

        Args:
            share: how much of the generated mouth is shown, 0..1.
            heard: the frame's audio block, or its sound for a backend that hears.
            encodes: whether the backend does.
        """
        package, variant = avatar.package, variant_of(job.look, avatar.package)
        face = package.rect(job.avatar_frame)
        content, encode = job.look.content, None
        if content == Content.FRAME:
            place = self.encoder.place(package, job.avatar_frame, variant)
            part = place.part
            if encodes:
                encode = place.encode(how_coded(package.manifest, variant.quality))
        else:
            part = SQUARE if content == Content.REGION else face

        def finish(image: NDArray[np.uint8] | Coded) -> Made:
            if content != Content.FRAME:
                assert not isinstance(image, Coded)
                return self.encoder.alone(package, image, variant.quality), face
            jpeg = self.encoder.frame(package, job.avatar_frame, variant, image)
            return jpeg, Rect.of_size(package.frame_size)

        block, sound = (None, heard) if isinstance(heard, Sound) else (heard, None)
        return RegionJob(avatar.loaded, job.avatar_frame, block, share, part, sound, encode), finish

    def has_chore(self, served: Served) -> bool:
        """Whether ``chore`` would give something to do."""
        return served.unprepared or served.unwarmed

    def chore(self, backend: Backend, served: Served) -> Callable[[], None] | None:
        """What to do for an avatar before it is asked for, frame by frame; None: nothing.

        First what is small, of every avatar: an engine that is kept as a spare has it, too. What is
        large only once the avatar is used.
        """
        package, count = served.package, served.package.manifest.frame_count

        def prepare(index: int) -> None:
            if not self.encoder.prepare(package, index):
                served.prepared = count

        def warm(first: int, end: int) -> None:
            variant = Variant(package.manifest.jpeg.quality)
            frames = [(k, self.encoder.part(package, k, variant)) for k in range(first, end)]
            if backend.warm(served.loaded, frames) < len(frames):
                served.warmed = count

        if served.unprepared:
            served.prepared += 1
            return partial(prepare, served.prepared - 1)
        if served.unwarmed:
            first, served.warmed = served.warmed, min(count, served.warmed + backend.warms)
            return partial(warm, first, served.warmed)
        return None

    def own(self, avatar: Served, job: Job) -> Made:
        """The avatar's own picture (in any thread)."""
        package, index, content = avatar.package, job.avatar_frame, job.look.content
        variant = variant_of(job.look, package)
        if content == Content.FRAME:
            jpeg = self.encoder.original(package, index, variant)
            return jpeg, Rect.of_size(package.frame_size)
        make = self.encoder.own_mouth if content == Content.MOUTH else self.encoder.own_region
        return make(package, index, variant.quality), package.rect(index)


def variant_of(look: Look, package: AvatarPackage) -> Variant:
    """How an avatar's frames are encoded in a look."""
    return Variant(look.quality or package.manifest.jpeg.quality, look.max_width)
