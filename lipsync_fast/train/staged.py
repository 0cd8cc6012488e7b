# SPDX-License-Identifier: Apache-2.0
"""Write a prepared folder from pictures that are at hand, without a video or a detector."""

from __future__ import annotations

import hashlib
import shutil
import wave
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.manifest import FileEntry, FrameJpeg
from lipsync_fast.avatars.storage import write_array
from lipsync_fast.prepare.folder import NAME, Prepared, Source, landmarks_header
from lipsync_fast.prepare.loop import Loop

RATE = 16_000


@dataclass(frozen=True, slots=True)
class Staged:
    """One frame: H x W x 3 uint8 RGB, and the face crop x1, y1, x2, y2 in it."""

    picture: NDArray[np.uint8]
    rect: tuple[int, int, int, int]


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
    folder: Path, frames: Iterable[Staged], pcm: NDArray[np.int16] | None, said: Said
) -> Path:
    """Write the folder, whole or not at all; it must not be there yet.

    Args:
        folder: its path.
        frames: in time order, 25 a second, all of one size, at least one.
        pcm: 16 kHz mono, 640 samples for each frame; None: no sound.
        said: what it says of itself.
    """
    made = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    _write(made, frames, pcm, said)
    made.rename(folder)
    return folder


def _write(
    folder: Path, frames: Iterable[Staged], pcm: NDArray[np.int16] | None, said: Said
) -> None:
    how = FrameJpeg()
    offsets, segments, rects = [0], [], []
    height = width = 0
    with (folder / "frames.bin").open("wb") as file:
        for frame in frames:
            height, width = frame.picture.shape[:2]
            jpeg = encode_frame(frame.picture, how)
            file.write(jpeg)
            offsets.append(offsets[-1] + len(jpeg))
            segments.append(segment_offsets(jpeg))
            rects.append(frame.rect)
    _write_arrays(folder, offsets, segments, rects)
    if pcm is not None:
        with wave.open(str(folder / "sound.wav"), "wb") as out:
            out.setparams((1, 2, RATE, 0, "NONE", ""))
            out.writeframes(pcm.astype("<i2").tobytes())
    entries = {path.name: _entry(path) for path in sorted(folder.iterdir())}
    frames_hash = entries["frames.bin"].sha256
    prepared = Prepared(
        name=said.name,
        frame_width=width,
        frame_height=height,
        frame_count=len(rects),
        jpeg=how,
        loop=Loop(kind="pingpong", first=0, count=len(rects)),
        points=3,
        detector="none",
        sound=pcm is not None,
        synthetic=said.synthetic,
        licence=said.licence,
        provenance=said.provenance,
        consent=said.consent,
        key=frames_hash,
        source=Source(
            name=said.source,
            size=offsets[-1],
            sha256=frames_hash,
            width=width,
            height=height,
            rate=25.0,
            codec="mjpeg",
        ),
        files=entries,
    )
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(prepared), indent=1))


def _write_arrays(
    folder: Path,
    offsets: list[int],
    segments: list[NDArray[np.uint32]],
    rects: list[tuple[int, int, int, int]],
) -> None:
    corners = np.array([[(a, b), ((a + c) // 2, d), (c, b)] for a, b, c, d in rects], "<f4")
    (folder / "frames.npy").write_bytes(write_array(np.array(offsets, np.uint64)))
    (folder / "segments.npy").write_bytes(write_array(np.stack(segments)))
    (folder / "rects.npy").write_bytes(write_array(np.array(rects, np.int32)))
    header = landmarks_header((len(rects), 3, 2))
    (folder / "landmarks.npy").write_bytes(header + corners.tobytes())


def _entry(path: Path) -> FileEntry:
    return FileEntry(size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
