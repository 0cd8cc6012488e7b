# SPDX-License-Identifier: Apache-2.0
"""The Python interface without a server: ``open`` an avatar, ``render`` speech with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.pcm import Resampler, to_float, to_mono
from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.manifest import FrameJpeg, Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.closing import Closing
from lipsync_fast.engine.backends import Backend, create_backend
from lipsync_fast.engine.pipeline import pictures
from lipsync_fast.errors import AudioFormatError
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet
from lipsync_fast.timing import FPS

Path_ = str | os.PathLike[str]
Audio = Path_ | NDArray[np.generic] | Iterable[NDArray[np.generic]]
PIECE = 16_000


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """One frame of a rendered video.

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


class Rendering(Closing):
    """Iterates over the frames of one sound, once; made by ``Avatar.render``.

    Raises while iterating:
        MediaError: the sound cannot be decoded.
        AudioFormatError: PCM that cannot be used; 0 samples.
    """

    def __init__(self, avatar: Avatar, audio: Audio, rate: object, start_frame: int) -> None:
        if start_frame < 0:
            raise ValueError(f"start_frame {start_frame}: expected 0 or more")
        self._avatar, self._start = avatar, start_frame
        self._source: MediaSource | None = None
        self._warnings: list[str] = []
        if isinstance(audio, (str, os.PathLike)):
            self._source = MediaSource(audio)
            self._pcm: Iterator[NDArray[np.float32]] = iter(self._source)
        else:
            resampler = Resampler(rate)
            array = isinstance(audio, np.ndarray)
            pieces = iter(_split(audio)) if array else iter(audio)  # type: ignore[arg-type]
            self._pcm = self._resampled(resampler, pieces)
        self._frames = self._run()

    @property
    def warnings(self) -> list[str]:
        """What was mended in the sound so far; complete when the iteration has ended."""
        return self._warnings if self._source is None else self._source.warnings

    @property
    def total_frames(self) -> int | None:
        """Frames to expect by the file's header; None where nothing says it."""
        seconds = self._source.seconds if self._source is not None else None
        return None if seconds is None else max(1, -int(-seconds * FPS // 1))

    def _resampled(
        self, resampler: Resampler, pieces: Iterator[NDArray[np.generic]]
    ) -> Iterator[NDArray[np.float32]]:
        for piece in pieces:
            yield resampler.push(to_mono(to_float(np.asarray(piece))))
        if resampler.report.samples == 0:
            raise AudioFormatError("the sound has 0 samples; nothing to render")
        yield resampler.finish()
        self._warnings += resampler.report.warnings()

    def _run(self) -> Iterator[RenderedFrame]:
        package = self._avatar.package
        jpeg, xmp = package.manifest.jpeg, xmp_packet(package.manifest.synthetic)
        loaded, backend = self._avatar.loaded, self._avatar.backend
        try:
            for p in pictures(backend, loaded, self._pcm, self._start):
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
        if self._source is not None:
            self._source.close()


def _split(pcm: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    for i in range(0, len(pcm) if pcm.ndim else 0, PIECE):
        yield pcm[i : i + PIECE]


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

    def render(self, audio: Audio, rate: int | None = None, *, start_frame: int = 0) -> Rendering:
        """Speak a sound: iterate over the result for its ceil(seconds * 25) frames.

        Args:
            audio: the path of a sound or video file; or PCM as an array, (samples,) or
                (samples, channels), int16, int32, uint8 or float in [-1, 1]; or an iterable of
                such arrays, of any sizes, rendered as they come.
            rate: samples a second of PCM; not for files.
            start_frame: the avatar frame under the first picture.

        Raises:
            MediaError: the file cannot be opened, or holds no sound.
            AudioFormatError: PCM without a usable rate, shape or type.
        """
        return Rendering(self, audio, rate, start_frame)

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
        BackendError: the backend cannot run here.
    """
    path: Path = AvatarLibrary(avatars).find(avatar)
    package = AvatarPackage.open(path)
    try:
        return Avatar(package, create_backend(backend, threads))
    except BaseException:
        package.close()
        raise
