# SPDX-License-Identifier: Apache-2.0
"""Some boxes' contents held against the face pictures that an avatar has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.importing.pictures import numbered_pictures, read_picture
from lipsync_fast.avatars.importing.videos import COMPARED, FAR, SMALL
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.families.wav2lip import WAV2LIP
from lipsync_fast.geometry import Rect

Rgb = NDArray[np.uint8]


def far_from(face: Rgb, picture: Rgb, rect: Rect) -> float:
    """Grey levels between a face and what a rectangle holds, on average, both made small."""
    made = WAV2LIP.crop.resized(picture[rect.slices], face.shape[0], face.shape[1])
    small = [
        np.asarray(Image.fromarray(p).resize((SMALL, SMALL), Image.Resampling.BOX), np.float32)
        for p in (face, made)
    ]
    return float(np.abs(small[0] - small[1]).mean())


class FaceCheck:
    """Holds boxes against faces while pictures pass; nothing is made of those faces.

    Args:
        path: the avatar's folder.
        faces: the name of the folder of faces in it.
        rects: the boxes.
    """

    def __init__(self, path: Path, faces: str, rects: list[Rect]) -> None:
        self._path, self._name, self._rects = path, faces, rects
        self._chosen = {int(i) for i in np.linspace(0, len(rects) - 1, COMPARED)}
        self._furthest, self._at = 0.0, 0
        self._unchecked = ""
        self._faces: list[Path] = []
        try:
            self._faces = numbered_pictures(path / faces)
            if len(self._faces) != len(rects):
                self._unchecked = f"{len(self._faces)} faces for {len(rects)} frames"
        except AvatarImportError as error:
            self._unchecked = str(error)

    def compare(self, number: int, picture: Rgb) -> None:
        """With the face of a frame."""
        if self._unchecked or number not in self._chosen:
            return
        try:
            face, _ = read_picture(self._faces[number], self._path)
        except AvatarImportError as error:
            self._unchecked = str(error)
            return
        far = far_from(face, picture, self._rects[number])
        if far > self._furthest:
            self._furthest, self._at = far, number

    def finish(self) -> list[str]:
        """All warnings."""
        found = []
        if self._unchecked:
            found.append(f"the face boxes were not checked: {self._unchecked}")
        if self._furthest > FAR:
            found.append(
                f"the box of frame {self._at} does not hold the face of {self._name}: they differ"
                f" by {self._furthest:.1f} grey levels on average; do they belong together?"
            )
        return found
