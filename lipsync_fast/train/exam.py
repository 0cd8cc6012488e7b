# SPDX-License-Identifier: Apache-2.0
"""How like its teacher a student is, on frames and sound that it has not learnt from.

Each of some frames is shown with each of some sounds, so that nothing in a picture can tell what
the mouth does: what openings have in common is what was heard. Where it matters is where sound
moves the teacher's picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lipsync_fast.arrays import F32, U8
from lipsync_fast.avatars.contact_sheet import contact_sheet
from lipsync_fast.geometry import Rect
from lipsync_fast.provenance import xmp_packet
from lipsync_fast.train.hearing import Sounds
from lipsync_fast.train.look import correlation, laplacian
from lipsync_fast.train.state import Alike
from lipsync_fast.train.teacher import Seat, Teacher
from lipsync_fast.train.validate import TILES, Look, sheet_jpeg

FRAMES, SOUNDS = 6, 24
"""Of an exam; each frame with each sound."""
SOFT = 2.0
"""Pixels over which the map of what moves is smoothed, in a region of 256."""
MOUTH, LIPS = 0.15, 0.5
"""Of the most that a pixel moves: from there on it is in the mouth's box, and in its opening."""
_MOST = 1000.0


@dataclass(frozen=True, slots=True)
class Marks:
    """What came out.

    Attributes:
        window: mean absolute difference over all that is made, in grey levels.
        mouth: the same where sound moves the teacher's picture.
        alike: openings and sharpness.
    """

    window: float
    mouth: float
    alike: Alike


class Exam:
    """The teacher's answers are asked for once.

    Args:
        teacher: it.
        seat: the student's.
        frames: to choose from.
        sounds: to choose from.
        part: 0 or 1: two exams of the same frames, by other moments of the same sounds.

    Attributes:
        frames: numbers of frames, one for each question.
        blocks: what is heard with it, 32 x 16 x 16.
        mouth: where sound moves the teacher's picture, in its window.
    """

    def __init__(
        self, teacher: Teacher, seat: Seat, frames: Sequence[int], sounds: Sounds, part: int
    ) -> None:
        self.seat, self._synthetic = seat, teacher.package.manifest.synthetic
        shown = _spaced(frames, FRAMES)
        heard = [sounds.block(i) for i in _spaced(range(part, len(sounds), 2), SOUNDS)]
        self._kinds = len(heard)
        self.frames = [frame for frame in shown for _ in heard]
        self.blocks = heard * len(shown)
        self._taught = np.stack(teacher.made(self.frames, self.blocks))
        moves = motion(self._taught, self._kinds, teacher.region)
        self.mouth = _box(moves)
        self._lips = np.where(moves >= LIPS * moves.max(), moves, np.float32(0))
        self._opened = self._openings(self._taught)
        self._sharp = self._sharpness(self._taught)

    def marks(self, made: Sequence[U8]) -> Marks:
        """What a student's answers are worth.

        Args:
            made: its windows, one for each question, H x W x 3 uint8 RGB.
        """
        own = self._as_taught(made)
        apart = np.abs(own.astype(np.int16) - self._taught)
        openings = self._openings(own)
        swing = float(openings.std()) / max(1e-9, float(self._opened.std()))
        sharpness = self._sharpness(own) / max(1e-6, self._sharp)
        return Marks(
            window=float(apart.mean()),
            mouth=float(apart[(slice(None), *self.mouth.slices)].mean()),
            alike=Alike(
                r=correlation(openings, self._opened),
                swing=min(_MOST, swing),
                sharpness=min(_MOST, sharpness),
            ),
        )

    def look(self, made: Sequence[U8]) -> Look:
        """The same with a picture: teacher left, student right."""
        marks, own = self.marks(made), self._as_taught(made)
        chosen = _spaced(range(len(own)), TILES)
        tiles = [np.concatenate([self._taught[k], own[k]], 1) for k in chosen]
        captions = [
            f"frame {self.frames[k]}: teacher | student, off by"
            f" {np.abs(own[k].astype(np.int16) - self._taught[k]).mean():.1f}"
            for k in chosen
        ]
        sheet = sheet_jpeg(contact_sheet(tiles, captions), xmp_packet(self._synthetic))
        return Look(marks.window, marks.mouth, sheet, alike=marks.alike)

    def _as_taught(self, made: Sequence[U8]) -> U8:
        pairs = zip(self.frames, made, strict=True)
        return np.stack([self.seat.as_taught(frame, one) for frame, one in pairs])

    def _openings(self, made: U8) -> NDArray[np.float64]:
        """How dark it is between the lips, against the same frame with other sounds."""
        grey = made.mean(-1, dtype=np.float64)  # so that equal pictures give equal numbers
        dark = -np.tensordot(grey, self._lips, 2) / max(1e-9, float(self._lips.sum()))
        by_frame = np.asarray(dark, np.float64).reshape(-1, self._kinds)
        return np.asarray((by_frame - by_frame.mean(1, keepdims=True)).ravel())

    def _sharpness(self, made: U8) -> float:
        rows, columns = self.mouth.slices
        return float(np.mean([laplacian(one[rows, columns]).var() for one in made]))


def motion(made: U8, sounds: int, region: int) -> F32:
    """How far sound moves each pixel, in grey levels: H x W, smoothed.

    Args:
        made: windows, ``sounds`` of each frame one behind the other.
        region: side of the region that they are from.
    """
    grey = made.mean(-1, dtype=np.float32)
    by_frame = grey.reshape(-1, sounds, *grey.shape[1:])
    moves = by_frame.std(1).mean(0)
    # Pillow's blur takes no floats: 256 levels up to the largest are fine enough.
    most = max(float(moves.max()), 1e-6)
    levels = np.round(moves * (255 / most)).astype(np.uint8)
    soft = Image.fromarray(levels).filter(ImageFilter.GaussianBlur(SOFT * region / 256))
    return np.asarray(soft, np.float32) * np.float32(most / 255)


def _box(moves: F32) -> Rect:
    """Where much moves; all of it where nothing does."""
    high = moves >= MOUTH * moves.max()
    rows, columns = np.flatnonzero(high.any(1)), np.flatnonzero(high.any(0))
    return Rect.from_corners(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _spaced(among: Sequence[int], most: int) -> list[int]:
    """Evenly spaced ones of them."""
    places = np.linspace(0, len(among) - 1, min(most, len(among)))
    return [among[int(p)] for p in places]
