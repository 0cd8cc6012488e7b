# SPDX-License-Identifier: Apache-2.0
"""LiveTalking's wav2lip avatars: frames, face boxes, and one checkpoint shared by all of them.

full_imgs/{i:08d}.png    the frames (or .jpg)
coords.pkl               a pickled list of (y1, y2, x1, x2), a box for each frame
face_imgs/{i:08d}.png    the boxes' contents, resized; only held against them
../models/wav2lip.pth    the weights; or near it, or named with --checkpoint
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.box_order import (
    FACES,
    refuse_other_kinds,
    refuse_other_order,
)
from lipsync_fast.avatars.importing.coords import read_coords
from lipsync_fast.avatars.importing.face_check import FaceCheck
from lipsync_fast.avatars.importing.parts import Networks, Picture, Problems, Source
from lipsync_fast.avatars.importing.pictures import numbered_pictures, read_picture
from lipsync_fast.avatars.importing.rectangles import Track, settled
from lipsync_fast.avatars.importing.videos import check_count
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.families.wav2lip import WAV2LIP

FORM = "LiveTalking wav2lip"
FRAMES, BOXES = "full_imgs", "coords.pkl"
MARKS = (FRAMES, FACES, BOXES)
NEEDED = (FRAMES, BOXES)
WEIGHTS = "wav2lip.pth"
Rgb = NDArray[np.uint8]


def find_weights(path: Path) -> Path:
    """``models/wav2lip.pth`` or ``wav2lip.pth``, of the avatar's folder or one of four above it.

    Raises:
        AvatarImportError: says where it was looked for.
    """
    folders = [path, *list(path.parents)[:4]]
    for folder in folders:
        for file in (folder / "models" / WEIGHTS, folder / WEIGHTS):
            if file.is_file():
                return file
    looked = ", ".join(str(folder / "models" / WEIGHTS) for folder in folders)
    raise AvatarImportError(f"no {WEIGHTS} found at {looked}; name it with --checkpoint")


def read(path: Path, checkpoint: Path | None, audio_encoder: Path | None) -> Source:
    """Look at an avatar; all but its pictures is read.

    Raises:
        AvatarImportError: names every part that is missing or wrong, or what else it is.
    """
    refuse_other_kinds(path)
    problems = Problems(path, FORM)
    files: list[Path] = []
    first: Rgb | None = None
    given = np.zeros((0, 4))
    with problems.gathered():
        files = numbered_pictures(path / FRAMES)
        check_count(len(files), path / FRAMES)
        first, _ = read_picture(files[0], path)
    with problems.gathered():
        given = read_coords(path / BOXES, path)
    if files and len(given) and len(files) != len(given):
        problems.add(
            f"{path / BOXES}: {len(given)} boxes, but {FRAMES} has {len(files)} pictures; expected"
            " one for each"
        )
    elif files and len(given):
        refuse_other_order(path, files, given)
    found = checkpoint
    if found is None:
        with problems.gathered():
            found = find_weights(path)
    if found is not None and found.suffix.lower() == ".onnx":
        problems.add(f"{found}: networks of this family are read as .pth only, not as .onnx")
    problems.check()
    assert first is not None
    assert found is not None
    height, width = first.shape[:2]
    track = settled(given, width, height, str(path / BOXES))
    warnings: list[str] = []
    pictures = _pictures(path, files, track, (height, width), warnings)
    weights = Networks(found, audio_encoder or found)
    return Source(FORM, path, width, height, track, weights, pictures, WAV2LIP, warnings)


def _pictures(
    path: Path, files: list[Path], track: Track, size: tuple[int, int], warnings: list[str]
) -> Generator[Picture]:
    height, width = size
    check = FaceCheck(path, FACES, track.rects)
    for i, file in enumerate(files):
        picture, source = read_picture(file, path)
        if picture.shape != (height, width, 3):
            found = f"{picture.shape[1]} x {picture.shape[0]}"
            raise AvatarImportError(f"{file}: {found}, but frame 0 is {width} x {height}")
        check.compare(i, picture)
        yield Picture(str(file), picture, None, source)
    warnings += check.finish()
