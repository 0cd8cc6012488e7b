# SPDX-License-Identifier: Apache-2.0
"""The older "default_model" form: a video with the bounds of its faces.

video.mp4                        the frames
face_bounds/{i}.npy              5 or 6 numbers: xmin, ymin, xmax, ymax, width[, height]
models/99.pth                    the U-Net's weights; the highest number is taken
models/audio_visual_encoder.pth  the audio encoder's
face_regions_320.mp4             the inner 320 x 320 of each crop; only held against them
masked_regions_320.mp4, aud_ave.npy    not needed
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.parts import Problems, Source, need_file
from lipsync_fast.avatars.importing.pictures import is_number
from lipsync_fast.avatars.importing.videos import WHAT, check_count, source_of
from lipsync_fast.avatars.importing.weights import find_epoch, networks
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.files import read_file

FORM = "default_model"
VIDEO, BOUNDS, REGIONS = "video.mp4", "face_bounds", "face_regions_320.mp4"
UNNEEDED = ("masked_regions_320.mp4", "aud_ave.npy")
MARKS = (BOUNDS, REGIONS, UNNEEDED[0])
NEEDED = (VIDEO, BOUNDS)
_SLACK = 2.0
_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)\{'descr': '(?P<kind>[<>|][iuf][1248])',"
    rb" 'fortran_order': (?:False|True), 'shape': \((?P<rows>[0-9]{1,4}),"
    rb" ?(?P<columns>[0-9]{1,4})?\), \} *\n",
    re.DOTALL,
)
"""As NumPy writes it. It is a Python expression, of which nothing but this form is read."""


def read_bounds(path: Path, root: Path) -> NDArray[np.float64]:
    """One face's x1, y1, x2, y2.

    Raises:
        AvatarImportError: missing, not 5 or 6 numbers, or a width that is not theirs.
    """
    what = "5 or 6 numbers (xmin, ymin, xmax, ymax, width[, height]) as an array of NumPy"
    try:
        data = read_file(path, "the bounds of a face", limits.BOUNDS_BYTES, root)
    except FileNotFoundError:
        raise AvatarImportError(f"{path}: missing; expected {what}") from None
    try:
        numbers = _numbers(data)
    except ValueError:
        raise AvatarImportError(f"{path}: expected {what}") from None
    sides = [numbers[2] - numbers[0], numbers[3] - numbers[1]]
    for said, side, name in zip(numbers[4:], sides, ("width", "height"), strict=False):
        if math.isfinite(side) and side > 0 and not abs(said - side) <= _SLACK:
            raise AvatarImportError(f"{path}: a {name} of {said:g}, but its bounds span {side:g}")
    return numbers[:4]


def _numbers(data: bytes) -> NDArray[np.float64]:
    """5 or 6 numbers of a .npy file.

    Raises:
        ValueError: it holds anything else.
    """
    header = _HEADER.match(data)
    if header is None or len(data) < 10:
        raise ValueError("no array of numbers")
    begin = (10 if data[6] == 1 else 12) + int.from_bytes(
        data[8 : 10 if data[6] == 1 else 12], "little"
    )
    dtype = np.dtype(header["kind"].decode())
    count = int(header["rows"]) * int(header["columns"] or 1)
    if count not in (5, 6) or len(data) - begin != count * dtype.itemsize:
        raise ValueError(count)
    return np.frombuffer(data, dtype, count, begin).astype(np.float64)


def _read_all(path: Path, problems: Problems) -> NDArray[np.float64]:
    """The bounds of all frames, from 0 to the highest number that is there."""
    folder = path / BOUNDS
    found = np.zeros((0, 4))
    with problems.gathered():
        if not folder.is_dir():
            raise AvatarImportError(f"{folder}: missing; expected a folder with 0.npy, 1.npy …")
        if not folder.resolve().is_relative_to(path):
            raise AvatarImportError(f"{folder}: is a link that leads out of {path}; copy it in")
        names = [p for p in folder.iterdir() if p.suffix == ".npy" and is_number(p.stem)]
        if not names:
            raise AvatarImportError(f"{folder}: holds no 0.npy, 1.npy …")
        check_count(len(names), folder)
        found = np.full((len(names), 4), np.nan)
    for i in range(len(found)):
        with problems.gathered():
            found[i] = read_bounds(folder / f"{i}.npy", path)
    return found


def read(path: Path, checkpoint: Path | None, audio_encoder: Path | None) -> Source:
    """Look at a package; all but its pictures is read.

    Raises:
        AvatarImportError: names every part that is missing or wrong.
    """
    problems = Problems(path, FORM)
    given = _read_all(path, problems)
    with problems.gathered():
        need_file(path / VIDEO, path, WHAT)
    found = checkpoint
    if found is None:
        with problems.gathered():
            found = find_epoch([path / "models"])
    weights = networks(problems, path, found, path / "models" / "99.pth", audio_encoder)
    problems.check()
    source = source_of(FORM, path, VIDEO, given, BOUNDS, weights, (REGIONS, 320))
    missing = [name for name in UNNEEDED if not (path / name).is_file()]
    if missing:
        source.notes.append(f"not there, and not needed: {', '.join(missing)}")
    return source
