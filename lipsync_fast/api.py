# SPDX-License-Identifier: Apache-2.0
"""The Python interface without a server: ``open`` an avatar, ``render`` speech with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.manifest import FrameJpeg, Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.closing import Closing
from lipsync_fast.engine.backends import Backend, create_backend
from lipsync_fast.engine.pipeline import pictures
from lipsync_fast.media.given import Audio, GivenSound, Path_
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet
from lipsync_fast.timing import FPS


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RenderedFrame:
    """One frame of a rendered video; a notebook shows it as its picture.

    Attributes:
        index: its number from 0.
        pts: when it is shown, in seconds.
        image: H x W x 3 uint8 RGB; yours to change.
        avatar_frame: which of the avatar's frames lies under it.
    """

    index: int
    pts: Fraction
    image: NDArray[np.uint8]
    avatar_frame: int
    _jpeg: FrameJpeg = field(repr=False)
    _xmp: bytes = field(repr=False)

    @property
    def jpeg(self) -> bytes:
        """The frame as a JPEG that says how it was made; encoded on each access."""
        return jpeg_with_xmp(encode_frame(self.image, self._jpeg), self._xmp)

    def _repr_jpeg_(self) -> bytes:
        return self.jpeg

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return (
            f"RenderedFrame(index={self.index}, pts={float(self.pts):.2f} s, {width} x {height},"
            f" avatar_frame={self.avatar_frame})"
        )


class Rendering(Closing):
    """Iterates over the frames of one sound, once; made by ``Avatar.render``.

    Raises while iterating:
        MediaError: the sound cannot be decoded.
        AudioFormatError: PCM that cannot be used; 0 samples.
    """

    def __init__(
        self, avatar: Avatar, audio: Audio, sample_rate: int | None, start_frame: int
    ) -> None:
        if not _whole(start_frame) or start_frame < 0:
            raise ValueError(f"start_frame {start_frame!r}: expected a whole number, 0 or more")
        self._avatar, self._start = avatar, start_frame
        self._sound = GivenSound(audio, sample_rate)
        self._frames = self._run()

    @property
    def warnings(self) -> list[str]:
        """What was mended in the sound so far; complete when the iteration has ended."""
        return self._sound.warnings

    @property
    def total_frames(self) -> int | None:
        """Frames to expect by what the file holds; None where nothing says it."""
        seconds = self._sound.seconds
        return None if seconds is None else max(1, -int(-seconds * FPS // 1))

    def _run(self) -> Iterator[RenderedFrame]:
        package = self._avatar.package
        jpeg, xmp = package.manifest.jpeg, xmp_packet(package.manifest.synthetic)
        loaded, backend = self._avatar.loaded, self._avatar.backend
        try:
            for p in pictures(backend, loaded, self._sound, self._start):
                pts = Fraction(p.index, FPS)
                yield RenderedFrame(p.index, pts, p.image, p.avatar_frame, jpeg, xmp)
        finally:
            self.close()

    def __iter__(self) -> Iterator[RenderedFrame]:
        return self._frames

    def __next__(self) -> RenderedFrame:
        return next(self._frames)

    def close(self) -> None:
        """Close the sound file; no more frames come after it."""
        self._sound.close()


class Avatar(Closing):
    """An avatar that is ready to speak; made by ``lipsync_fast.open``. Not for several threads."""

    def __init__(self, package: AvatarPackage, backend: Backend) -> None:
        self.package, self.backend = package, backend
        self.loaded = backend.load(package)

    @property
    def name(self) -> str:
        """The avatar's name."""
        return self.manifest.name

    @property
    def manifest(self) -> Manifest:
        """What the package says of itself."""
        return self.package.manifest

    @property
    def backend_name(self) -> str:
        """What it runs on, such as ``cpu``."""
        return self.backend.name

    def render(
        self,
        audio: Audio,
        sample_rate: int | None = None,
        *,
        start_frame: int = 0,
        rate: int | None = None,
    ) -> Rendering:
        """Speak a sound: iterate over the result for its ceil(seconds * 25) frames.

        Args:
            audio: the path of a sound or video file; or such a file opened for reading bytes, which
                is read to its end at once and stays open. Or PCM: an array, (samples,) or
                (samples, channels), int16, int32, uint8 or float in [-1, 1]; bytes, 16-bit
                little-endian and mono; or an iterable of such arrays or bytes, of any sizes,
                rendered as they come.
            sample_rate: samples a second of PCM; a file says its own.
            start_frame: the avatar frame under the first picture.
            rate: the former name of ``sample_rate``.

        Samples that are not finite count as silence; ``warnings`` of what is returned says how
        many, once it has been iterated over.

        Raises:
            MediaError: the file cannot be opened, or holds no sound.
            AudioFormatError (a ValueError): PCM without a usable rate, shape or type; something
                else than sound.
            ValueError: another argument cannot be.
        """
        if rate is not None:
            if sample_rate is not None:
                raise ValueError("rate is the former name of sample_rate: give one of them")
            warnings.warn("rate= is called sample_rate= now", DeprecationWarning, stacklevel=2)
            sample_rate = rate
        return Rendering(self, audio, sample_rate, start_frame)

    def __repr__(self) -> str:
        return f"Avatar({self.name!r}, on {self.backend_name})"

    def close(self) -> None:
        """Free the backend and the package; twice is harmless."""
        self.backend.close()
        self.package.close()


def open(
    avatar: Path_,
    *,
    backend: str = "auto",
    avatars: Iterable[Path_] = (),
    threads: int | None = None,
) -> Avatar:
    """Open an avatar by name or path.

    Args:
        avatar: a name (looked for in ``avatars``, $LIPSYNC_FAST_AVATARS, the user's data folder
            and the shipped ones), or the path of a package.
        backend: ``cpu``, ``cuda`` or ``auto``.
        avatars: folders to look in first.
        threads: the CPU backend's threads; all processors by default.

    Raises:
        AvatarNotFoundError, AvatarFormatError, AvatarVersionError: the package.
        BackendError: there is no such backend, or it cannot run here.
        ValueError: another argument cannot be.
    """
    if threads is not None and (not _whole(threads) or threads < 1):
        raise ValueError(f"threads {threads!r}: expected 1 or more, or None for all processors")
    if isinstance(avatars, (str, bytes, os.PathLike)):
        raise ValueError(f"avatars {str(avatars)!r}: expected a list of folders")
    if not isinstance(avatar, (str, os.PathLike)):
        raise ValueError(f"avatar {avatar!r}: expected a name or a path")
    path: Path = AvatarLibrary(avatars).find(avatar)
    package = AvatarPackage.open(path)
    try:
        return Avatar(package, create_backend(backend, threads))
    except BaseException:
        package.close()
        raise


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
