# SPDX-License-Identifier: Apache-2.0
"""What a film is like in numbers, and how to film better where they call for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lipsync_fast.prepare.heard import FOLLOWS, SURE, Heard, heard, is_silent
from lipsync_fast.prepare.pose import eyes_shut, turned
from lipsync_fast.prepare.rest import SHUT, mouth_opening
from lipsync_fast.timing import FPS

DARK = 50
"""Grey levels of the face, the median."""
BURNT, WHITE = 0.03, 250
"""Part of the face's pixels that may be so light, as nothing is seen in them."""
UNSTEADY = 25
"""Grey levels by which the face may become lighter and darker, seconds on the average."""
BLURRED = 0.15
"""Sharpness below which a face is blurred. Sharp films have 0.25 to 0.4; blurred by a hundredth of
the face's width they have 0.13."""
FAR = 25.0
"""Degrees by which a head is turned far."""
FAR_SHARE = 0.05
STILL = 0.03
"""A mouth that is open by less, as a part of the crop's side, in 19 frames of 20, hardly speaks."""
OUT_OF_STEP_MS = 60.0
"""A sound that is late or early by more is told."""
_FACE_SIDE = 160


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """What a film is like. None where the landmarks, or the sound, do not say.

    Attributes:
        brightness: of the face, in grey levels, the median.
        brightness_change: between its darkest and its lightest seconds (5% and 95%).
        burnt: share of the face's pixels that are white.
        sharpness: of the face; see ``sharpness``.
        eyes_shut, mouth_open: shares of the frames.
        turned: degrees by which the head is turned, to the picture's left (negative) and right, 1%
            and 99% of the frames.
        turned_far: share of the frames in which that is more than 25.
        follows_sound: correlation of the mouth with what its sound foretells; see heard.py.
        sound_late_ms: by how much the sound comes after the mouth; only where it follows.
    """

    brightness: int
    brightness_change: int
    burnt: float
    sharpness: float
    eyes_shut: float | None = None
    mouth_open: float | None = None
    turned: tuple[int, int] | None = None
    turned_far: float | None = None
    follows_sound: float | None = None
    sound_late_ms: int | None = None


@dataclass(frozen=True)
class Film:
    """A film as it was looked at.

    Attributes:
        points: N x K x 2.
        rects: N x 4, the crops.
        side: their median width.
        levels: N: mean grey level of each face.
        spoken: how many frames, from the first on, belong to ``pcm``.
        pcm: their sound; None where there is none.
    """

    points: NDArray[np.float32]
    rects: NDArray[np.int32]
    side: float
    levels: NDArray[np.float64]
    spoken: int
    pcm: NDArray[np.int16] | None


def face_levels(
    greys: NDArray[np.uint8], rects: NDArray[np.int32], width: int
) -> NDArray[np.float64]:
    """The mean grey level of each face, from small grey pictures of a video ``width`` wide."""
    scale = greys.shape[2] / width
    corners = np.maximum(0, np.round(rects * scale).astype(int))
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    return np.array(
        [
            grey[y1:y2, x1:x2].mean()
            for grey, (x1, y1, x2, y2) in zip(greys, corners.tolist(), strict=True)
        ],
        np.float64,
    )


def sharpness(face: NDArray[np.uint8]) -> float:
    """How much of a face's detail is fine, brought to a width of 160 pixels.

    What a blur by one pixel takes away against what one by four does, 0 to 1. So it says nothing of
    how much detail there is, and hardly depends on the face or on the light.
    """
    grey = Image.fromarray(face).convert("L")
    size = _FACE_SIDE, max(8, round(grey.height * _FACE_SIDE / grey.width))
    how = Image.Resampling.BOX if grey.width > _FACE_SIDE else Image.Resampling.BICUBIC
    small = grey.resize(size, how)
    levels = np.asarray(small, np.float64)
    fine, coarse = (
        float((levels - np.asarray(small.filter(ImageFilter.GaussianBlur(r)), np.float64)).std())
        for r in (1, 4)
    )
    return fine / coarse if coarse > 0.5 else 0.0


def burnt(face: NDArray[np.uint8]) -> float:
    """The share of a face's pixels that are white."""
    return float((face.min(axis=2) >= WHITE).mean())


def measured_film(film: Film, faces: Sequence[NDArray[np.uint8]]) -> Measures:
    """All measures.

    Args:
        faces: some frames' face crops, H x W x 3.
    """
    opening = mouth_opening(film.points, film.side)
    shut = eyes_shut(film.points)
    there = np.isfinite(film.points).all(axis=(1, 2))
    angles = turned(film.points)
    found = None
    if opening is not None and film.pcm is not None:
        found = heard(opening[: film.spoken], film.pcm)
    reach = min(FPS, len(film.levels))
    seconds = np.convolve(film.levels, np.full(reach, 1 / reach), "valid")
    low, high = np.percentile(seconds, (5, 95))
    return Measures(
        brightness=round(float(np.median(film.levels))),
        brightness_change=round(float(high - low)),
        burnt=round(float(np.median([burnt(face) for face in faces])), 3),
        sharpness=round(float(np.median([sharpness(face) for face in faces])), 3),
        eyes_shut=None if shut is None else _share(shut[there]),
        mouth_open=None if opening is None else _share(opening[there] > SHUT),
        turned=None if angles is None else _range(angles[there]),
        turned_far=None if angles is None else _share(np.abs(angles[there]) > FAR),
        follows_sound=None if found is None else round(found.follows, 2),
        sound_late_ms=_late(found),
    )


def _late(found: Heard | None) -> int | None:
    return round(found.late_ms) if found is not None and found.follows >= SURE else None


def _share(flags: NDArray[np.bool_]) -> float:
    return round(float(flags.mean()), 3) if len(flags) else 0.0


def _range(angles: NDArray[np.float64]) -> tuple[int, int]:
    left, right = np.percentile(angles, (1, 99))
    return round(float(left)), round(float(right))


def sound_warnings(
    measures: Measures, pcm: NDArray[np.int16] | None, moved_ms: float = 0.0
) -> list[str]:
    """What is wrong between the mouth and its sound, which was moved back by ``moved_ms``."""
    if pcm is not None and is_silent(pcm):
        return ["the video's sound is silent throughout: nothing can be trained from it"]
    follows, late = measures.follows_sound, measures.sound_late_ms
    if follows is not None and follows < FOLLOWS:
        return [
            f"the mouth hardly follows the video's sound (correlation {follows:.2f}; speech of"
            " one's own has 0.5 and more): is it somebody else's voice, music, or far out of step?"
            " What is trained from it will not follow a voice either"
        ]
    if late is not None and abs(late) > OUT_OF_STEP_MS:
        how = "after" if late > 0 else "before"
        return [
            f"the sound comes {abs(late)} ms {how} the mouth: prepare the video again with"
            f" --sound-late {round(moved_ms + late)}"
        ]
    return []


def advice(measures: Measures, opening: NDArray[np.float64] | None) -> list[str]:
    """How to film better, of what this film's numbers call for alone.

    Args:
        opening: N: how far the lips are apart; None where landmarks do not say.
    """
    m, said = measures, []
    if m.brightness < DARK:
        said.append(f"light: the face is dark ({m.brightness} of 255); a window or lamp in front")
    if m.burnt > BURNT:
        said.append(f"light: {100 * m.burnt:.0f}% of the face is burnt out to white; less exposure")
    if m.brightness_change > UNSTEADY:
        said.append(
            f"light: the face changes by {m.brightness_change} grey levels; steady lamps, no"
            " clouds, and the camera's exposure locked"
        )
    if m.sharpness < BLURRED:
        said.append(
            f"focus: the face is blurred (sharpness {m.sharpness:.2f}; good films have 0.25 and"
            " more); wipe the lens, lock the focus on the face, more light"
        )
    if m.turned_far is not None and m.turned_far > FAR_SHARE:
        said.append(
            f"pose: the head is turned by more than {FAR:.0f} degrees in"
            f" {100 * m.turned_far:.0f}% of the frames; look towards the camera"
        )
    seen = np.zeros(0) if opening is None else opening[np.isfinite(opening)]
    if len(seen) and np.percentile(seen, 95) < STILL:
        said.append("speech: the mouth is hardly ever open; speak as to somebody")
    return said
