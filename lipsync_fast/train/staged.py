# SPDX-License-Identifier: Apache-2.0
"""Write a prepared folder from pictures that are at hand, without a video or a detector."""

from __future__ import annotations

import shutil
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.avatars.members import file_entry
from lipsync_fast.geometry import Corners, Rect
from lipsync_fast.prepare.folder import Prepared, Source
from lipsync_fast.prepare.loop import Loop
from lipsync_fast.prepare.members import write_faces, write_frames, write_head
from lipsync_fast.timing import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Staged:
    """One frame: H x W x 3 uint8 RGB, and the face crop in it."""

    picture: NDArray[np.uint8]
    rect: Rect


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the folder says of itself."""

    name: str
    source: str
    licence: str = ""
    provenance: str = ""
    consent: str = ""
    synthetic: bool = False


def write_prepared(
    folder: Path,
    frames: Iterable[Staged],
    pcm: NDArray[np.int16] | None,
    said: Said,
    points: NDArray[np.float32] | None = None,
    loop: Loop | None = None,
) -> Path:
    """Write the folder, whole or not at all; it must not be there yet.

    Args:
        folder: its path.
        frames: in time order, 25 a second, all of one size, at least one.
        pcm: 16 kHz mono, 640 samples for each frame; None: no sound.
        said: what it says of itself.
        points: landmarks, N x K x 2; None: the three that the crops follow from.
        loop: what the avatar plays; None: all frames there and back.
    """
    made = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    _write(made, frames, pcm, said, points, loop)
    made.rename(folder)
    return folder


def _write(
    folder: Path,
    frames: Iterable[Staged],
    pcm: NDArray[np.int16] | None,
    said: Said,
    points: NDArray[np.float32] | None,
    loop: Loop | None,
) -> None:
    how = FrameJpeg()
    rects: list[Corners] = []
    height = width = 0

    def coded() -> Iterator[bytes]:
        nonlocal height, width
        for frame in frames:
            height, width = frame.picture.shape[:2]
            rects.append(frame.rect.corners)
            yield encode_frame(frame.picture, how)

    write_frames(folder, coded())
    corners = [[(a, b), ((a + c) // 2, d), (c, b)] for a, b, c, d in rects]
    landmarks = np.array(corners, np.float32) if points is None else points
    write_faces(folder, np.array(rects, np.int32), landmarks)
    if pcm is not None:
        with wave.open(str(folder / "sound.wav"), "wb") as out:
            out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            out.writeframes(pcm.astype("<i2").tobytes())
    pictures = file_entry(folder / "frames.bin")
    write_head(
        folder,
        Prepared(
            name=said.name,
            frame_width=width,
            frame_height=height,
            frame_count=len(rects),
            jpeg=how,
            loop=loop or Loop(kind="pingpong", first=0, count=len(rects)),
            points=landmarks.shape[1],
            detector="none",
            sound=pcm is not None,
            synthetic=said.synthetic,
            licence=said.licence,
            provenance=said.provenance,
            consent=said.consent,
            key=pictures.sha256,
            source=Source(
                name=said.source,
                size=pictures.size,
                sha256=pictures.sha256,
                width=width,
                height=height,
                rate=25.0,
                codec="mjpeg",
            ),
        ),
    )
