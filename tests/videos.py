# SPDX-License-Identifier: Apache-2.0
"""Videos made in tests, and what is true of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.geometry import Rect

Pictures = Sequence[NDArray[np.uint8]]


def write_video(
    path: Path,
    pictures: Pictures,
    *,
    rate: int = 25,
    sound: NDArray[np.int16] | None = None,
    codec: str = "libx264",
    change: Callable[[av.VideoStream], None] | None = None,
    tag: int | None = None,
) -> Path:
    """A video of H x W x 3 RGB pictures, and of 16 kHz sound where given.

    Args:
        change: called with the stream before anything is written.
        tag: FFmpeg's number of the colour space, to convert to and to say.
    """
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=rate)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p"
        if codec == "libx264":
            video.options = {"preset": "ultrafast", "crf": "12"}
        if tag is not None:
            video.codec_context.colorspace = tag
        if change is not None:
            change(video)
        audio = None
        if sound is not None:
            audio = file.add_stream("pcm_s16le" if path.suffix == ".mkv" else "aac", rate=16_000)
            audio.layout = "mono"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=tag)
            if tag is not None:
                frame.colorspace = tag
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if audio is not None and sound is not None:
            for start in range(0, len(sound), 1024):
                piece = av.AudioFrame.from_ndarray(
                    sound[None, start : start + 1024], format="s16", layout="mono"
                )
                piece.sample_rate, piece.pts = 16_000, start
                file.mux(audio.encode(piece))
            file.mux(audio.encode())
    return path


@lru_cache(maxsize=1)
def _shipped_rects() -> list[Rect]:
    with AvatarPackage.open(shipped_folder() / "demo.lsa") as package:
        return [package.rect(i) for i in range(package.manifest.frame_count)]


@lru_cache(maxsize=256)
def _shipped_picture(index: int, scale: int) -> NDArray[np.uint8]:
    with AvatarPackage.open(shipped_folder() / "demo.lsa") as package:
        return np.ascontiguousarray(package.picture(index)[::scale, ::scale])


def _played(count: int, first: int, frames: int) -> list[int]:
    """There and back, from ``first`` on."""
    there = [*range(frames), *range(frames - 2, 0, -1)]
    return [there[(first + i) % len(there)] for i in range(count)]


def demo_pictures(count: int, first: int = 0, scale: int = 4) -> list[NDArray[np.uint8]]:
    """The shipped avatar's frames as it plays them, 1280 x 720 divided by ``scale``."""
    places = _played(count, first, len(_shipped_rects()))
    return [_shipped_picture(i, scale) for i in places]


def demo_rects(count: int, first: int = 0, scale: int = 4) -> NDArray[np.float64]:
    """The corners of their face crops, N x 4."""
    shipped = _shipped_rects()
    places = _played(count, first, len(shipped))
    return np.array([shipped[i].corners for i in places], np.float64) / scale


def demo_landmarks(count: int, first: int = 0, scale: int = 4) -> NDArray[np.float32]:
    """Left, top and right of those crops as landmarks: N x 3 x 2."""
    x1, y1, x2, _ = demo_rects(count, first, scale).T
    low = y1 + (x2 - x1) / 4
    points = [[x1, low], [(x1 + x2) / 2, y1], [x2, low]]
    return np.array(points, np.float32).transpose(2, 0, 1)


def tone(frames: int, hertz: float = 440.0) -> NDArray[np.int16]:
    """A tone, 640 samples for each frame."""
    times = np.arange(640 * frames) / 16_000
    return np.round(8000 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)
