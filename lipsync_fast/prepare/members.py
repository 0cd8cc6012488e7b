# SPDX-License-Identifier: Apache-2.0
"""Write what every prepared folder has, whoever makes it; ``folder.py`` says what that is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.members import FrameWriter, file_entry
from lipsync_fast.avatars.storage import write_array
from lipsync_fast.prepare.folder import NAME, Prepared, landmarks_header


def write_frames(folder: Path, jpegs: Iterable[bytes]) -> None:
    """Write frames.bin, frames.npy and segments.npy.

    Args:
        jpegs: all frames in time order, at least one, with restart markers.

    Raises:
        OSError: they cannot be written.
    """
    with closing(FrameWriter(folder)) as frames:
        for jpeg in jpegs:
            frames.add(jpeg)
        frames.write_index()


def write_faces(folder: Path, rects: NDArray[np.int32], points: NDArray[np.float32]) -> None:
    """Write rects.npy and landmarks.npy.

    Args:
        rects: N x 4, the face crop x1, y1, x2, y2 in each frame.
        points: N x K x 2, pixels; NaN where there is no face.

    Raises:
        OSError: they cannot be written.
    """
    count, each, _ = points.shape
    (folder / "rects.npy").write_bytes(write_array(rects))
    header = landmarks_header((count, each, 2))
    (folder / "landmarks.npy").write_bytes(header + points.astype("<f4").tobytes())


def write_head(folder: Path, draft: Prepared) -> None:
    """Write prepared.json, last of all: ``draft`` with the checksums of what is there.

    Raises:
        OSError: it cannot be written.
    """
    entries = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
    whole = msgspec.structs.replace(draft, files=entries)
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1))
