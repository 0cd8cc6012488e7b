# SPDX-License-Identifier: Apache-2.0
"""SyncTalk_2D: a data set's folder, its checkpoint elsewhere.

full_body_img/{i}.jpg      the frames, from 0
landmarks/{i}.lms          110 lines "x y" each
parsing/{i}.png            optional: pure red and white keep the original
../../checkpoint/NAME/{epoch}.pth    the highest is taken; or checkpoint/{epoch}.pth
audio_visual_encoder.pth   shared by all avatars; looked for near the checkpoint
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

from lipsync_fast.avatars.importing.landmarks import crop_rectangle, face_square, read_landmarks
from lipsync_fast.avatars.importing.parts import MOST_FRAMES, Picture, Problems, Source
from lipsync_fast.avatars.importing.pictures import keep_mask, numbered_pictures, read_picture
from lipsync_fast.avatars.importing.rectangles import Track
from lipsync_fast.avatars.importing.weights import find_checkpoint, networks
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.families.synctalk2d import SYNCTALK2D

FORM = "SyncTalk_2D"
MARKS = ("full_body_img", "landmarks")
NEEDED = MARKS


def read(path: Path, checkpoint: Path | None, audio_encoder: Path | None) -> Source:
    """Look at a data set; all but its pictures is read.

    Raises:
        AvatarImportError: names every part that is missing or wrong.
    """
    problems = Problems(path, FORM)
    pictures: list[Path] = []
    track, width, height = Track([], []), 0, 0
    with problems.gathered():
        pictures = numbered_pictures(path / "full_body_img")
        if len(pictures) > MOST_FRAMES:
            raise AvatarImportError(
                f"{path / 'full_body_img'}: {len(pictures)} frames, expected at most {MOST_FRAMES}"
            )
        first, _ = read_picture(pictures[0], path)
        height, width = first.shape[:2]
    for i in range(len(pictures)):  # before the slow parts, so that a wrong line shows at once
        file = path / "landmarks" / f"{i}.lms"
        with problems.gathered():
            points = read_landmarks(file, path)
            if width:
                track.rects.append(crop_rectangle(points, width, height, str(file)))
                track.wanted.append(face_square(points))
    found = checkpoint
    if found is None:
        with problems.gathered():
            found = find_checkpoint(path)
    expected = path.parent.parent / "checkpoint" / path.name / "{epoch}.pth"
    weights = networks(problems, path, found, expected, audio_encoder)
    problems.check()
    frames = _pictures(path, pictures, track, width, height)
    return Source(FORM, path, width, height, track, weights, frames, SYNCTALK2D)


def _pictures(
    path: Path, pictures: list[Path], track: Track, width: int, height: int
) -> Generator[Picture]:
    for i, (file, rect) in enumerate(zip(pictures, track.rects, strict=True)):
        picture, source = read_picture(file, path)
        if picture.shape != (height, width, 3):
            size = f"{picture.shape[1]} x {picture.shape[0]}"
            raise AvatarImportError(f"{file}: {size}, but frame 0 is {width} x {height}")
        parsing = path / "parsing" / f"{i}.png"
        mask = None
        if os.path.lexists(parsing):  # a broken link is no map that was never there
            labels, _ = read_picture(parsing, path)
            if labels.shape != picture.shape:
                size = f"{labels.shape[1]} x {labels.shape[0]}"
                raise AvatarImportError(f"{parsing}: {size}, but frames are {width} x {height}")
            mask = keep_mask(labels[rect.slices])
        yield Picture(str(file), picture, mask, source)
