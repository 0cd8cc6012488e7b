# SPDX-License-Identifier: Apache-2.0
"""From jobs to encoded pictures: what the backend is to make, and what is made of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.base import SQUARE, Coded, RegionJob, Sound
from lipsync_fast.engine.changes import Place
from lipsync_fast.engine.splice import FrameEncoder, Variant, how_coded
from lipsync_fast.geometry import Rect, even_size
from lipsync_fast.ipc.messages import Content, Job, Look, Speech, scaled_size

Made = tuple[bytes, Rect]
"""A picture's JPEG, and where it lies in the avatar's frame."""


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


Picture = OwnPicture | SpokenPicture | CachedPicture


class Pictures:
    """From jobs to encoded pictures and where they lie."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self.encoder = encoder

    def spoken(
        self,
        avatar: RegisteredAvatar,
        job: Job,
        share: float,
        audio: NDArray[np.float32] | Sound,
        encodes: bool = False,
    ) -> tuple[RegionJob, Callable[[NDArray[np.uint8] | Coded], Made]]:
        """What the backend is to make of a job, and what to make of that (in its threads).

        Args:
            share: how much of the generated mouth is shown, 0..1.
            audio: the frame's audio block, or its sound for a backend that takes sound.
            encodes: whether the backend does.
        """
        package, variant = avatar.package, variant_of(job.look, avatar.package)
        face = package.rect(job.avatar_frame)
        content, encode = job.look.content, None
        if content == Content.PIXELS:
            size = scaled_size(package.frame_size, job.look.max_width)
            place = Place.of_face(package, job.avatar_frame, size)
            part = place.part
        elif content == Content.FRAME:
            place = self.encoder.place(package, job.avatar_frame, variant)
            part = place.part
            if encodes:
                encode = place.encode(how_coded(package.manifest, variant.quality))
        else:
            part = SQUARE if content == Content.REGION else face

        def finish(image: NDArray[np.uint8] | Coded) -> Made:
            if content == Content.PIXELS:
                from lipsync_fast.media.h264 import i420  # only who encodes needs PyAV

                assert place.cut is not None
                assert not isinstance(image, Coded)
                planes, box = i420(place.pixels(image)), place.cut.box
                width, height = even_size(box.size)
                return planes.tobytes(), Rect(box.x, box.y, width, height)
            if content != Content.FRAME:
                assert not isinstance(image, Coded)
                return self.encoder.alone(package, image, variant.quality), face
            jpeg = self.encoder.frame(package, job.avatar_frame, variant, image)
            return jpeg, Rect.of_size(package.frame_size)

        block, sound = (None, audio) if isinstance(audio, Sound) else (audio, None)
        return RegionJob(avatar.loaded, job.avatar_frame, block, share, part, sound, encode), finish

    def own(self, avatar: RegisteredAvatar, job: Job) -> Made:
        """The avatar's own picture (in any thread)."""
        package, index, content = avatar.package, job.avatar_frame, job.look.content
        variant = variant_of(job.look, package)
        if content == Content.FRAME:
            jpeg = self.encoder.original(package, index, variant)
            return jpeg, Rect.of_size(package.frame_size)
        if content == Content.PIXELS:
            raise ValueError("pixels of the avatar's own picture: encoders have them")
        make = self.encoder.own_mouth if content == Content.MOUTH else self.encoder.own_region
        return make(package, index, variant.quality), package.rect(index)


def variant_of(look: Look, package: AvatarPackage) -> Variant:
    """How an avatar's frames are encoded in a look."""
    return Variant(look.quality or package.manifest.jpeg.quality, look.max_width)
