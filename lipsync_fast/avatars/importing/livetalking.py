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
from PIL import Image

from lipsync_fast.avatars.importing.coords import read_coords
from lipsync_fast.avatars.importing.parts import Networks, Picture, Problems, Source
from lipsync_fast.avatars.importing.pictures import numbered_pictures, read_picture
from lipsync_fast.avatars.importing.rectangles import Track, settled
from lipsync_fast.avatars.importing.videos import COMPARED, FAR, SMALL, check_count
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.families.wav2lip import WAV2LIP
from lipsync_fast.geometry import Rect

FORM = "LiveTalking wav2lip"
FRAMES, BOXES, FACES = "full_imgs", "coords.pkl", "face_imgs"
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
        AvatarImportError: names every part that is missing or wrong.
    """
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
    check = _FaceCheck(path, track.rects)
    for i, file in enumerate(files):
        picture, source = read_picture(file, path)
        if picture.shape != (height, width, 3):
            found = f"{picture.shape[1]} x {picture.shape[0]}"
            raise AvatarImportError(f"{file}: {found}, but frame 0 is {width} x {height}")
        check.compare(i, picture)
        yield Picture(str(file), picture, None, source)
    warnings += check.finish()


class _FaceCheck:
    """Holds some boxes' contents against the faces that an avatar has; nothing is made of those."""

    def __init__(self, path: Path, rects: list[Rect]) -> None:
        self._path, self._rects = path, rects
        self._chosen = {int(i) for i in np.linspace(0, len(rects) - 1, COMPARED)}
        self._furthest, self._at = 0.0, 0
        self._unchecked = ""
        self._faces: list[Path] = []
        try:
            self._faces = numbered_pictures(path / FACES)
            if len(self._faces) != len(rects):
                self._unchecked = f"{len(self._faces)} faces for {len(rects)} frames"
        except AvatarImportError as error:
            self._unchecked = str(error)

    def compare(self, number: int, picture: Rgb) -> None:
        """With the face of a frame."""
        if self._unchecked or number not in self._chosen:
            return
        try:
            own, _ = read_picture(self._faces[number], self._path)
        except AvatarImportError as error:
            self._unchecked = str(error)
            return
        made = WAV2LIP.crop.resized(picture[self._rects[number].slices], own.shape[0], own.shape[1])
        small = [
            np.asarray(Image.fromarray(p).resize((SMALL, SMALL), Image.Resampling.BOX), np.float32)
            for p in (own, made)
        ]
        far = float(np.abs(small[0] - small[1]).mean())
        if far > self._furthest:
            self._furthest, self._at = far, number

    def finish(self) -> list[str]:
        """All warnings."""
        found = []
        if self._unchecked:
            found.append(f"the face boxes were not checked: {self._unchecked}")
        if self._furthest > FAR:
            found.append(
                f"the box of frame {self._at} does not hold the face of {FACES}: they differ by"
                f" {self._furthest:.1f} grey levels on average; do they belong together?"
            )
        return found
