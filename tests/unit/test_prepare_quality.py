# SPDX-License-Identifier: Apache-2.0
"""What a film is like: measured on the demo avatar's face, and on ones of a few points."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from videos import demo_pictures, demo_rects

from lipsync_fast.prepare.pose import eyes_shut, mouth_boxes, turned
from lipsync_fast.prepare.quality import (
    BLURRED,
    Film,
    Measures,
    advice,
    burnt,
    face_levels,
    measured_film,
    sharpness,
    sound_warnings,
)

GOOD = Measures(
    brightness=120, brightness_change=5, burnt=0.0, sharpness=0.3, turned_far=0.0,
    follows_sound=0.6, sound_late_ms=10,
)  # fmt: skip
TALKS = np.linspace(0, 0.1, 100)
LOUD = np.full(6400, 1000, np.int16)


def face(scale: int = 1) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = demo_rects(1, scale=scale)[0].astype(int)
    return demo_pictures(1, scale=scale)[0][y1:y2, x1:x2]


def blurred(picture: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


# ---------------------------------------------------------------- from pixels


def test_a_blurred_face_is_known_whatever_its_size() -> None:
    large = face()
    sharp = sharpness(large)
    assert sharp > BLURRED
    assert sharpness(blurred(large, large.shape[1] / 80)) < BLURRED < sharp
    dark = (large // 3).astype(np.uint8)
    assert sharpness(dark) == pytest.approx(sharp, abs=0.06)


def test_a_face_of_one_colour_is_not_sharp() -> None:
    assert sharpness(np.full((64, 64, 3), 90, np.uint8)) == 0.0


def test_burnt_out() -> None:
    picture = face().copy()
    assert burnt(picture) < 0.03
    picture[: len(picture) // 4] = 255
    assert burnt(picture) == pytest.approx(0.25, abs=0.03)


def test_levels_of_faces() -> None:
    greys = np.full((3, 30, 40), 10, np.uint8)
    greys[:, 10:20, 10:30] = [[[100]], [[120]], [[140]]]
    rects = np.array([[100, 100, 300, 200]] * 3, np.int32)
    assert face_levels(greys, rects, 400).tolist() == [100, 120, 140]


# ---------------------------------------------------------------- from landmarks


def mesh(frames: int) -> NDArray[np.float32]:
    points = np.full((frames, 468, 2), 200.0, np.float32)
    points[:, 234], points[:, 454], points[:, 1] = (100, 200), (300, 200), (200, 230)
    for up, low, outer, inner in ((159, 145, 33, 133), (386, 374, 263, 362)):
        points[:, outer], points[:, inner] = (120, 150), (150, 150)
        points[:, up], points[:, low] = (135, 145), (135, 155)
    points[:, 61], points[:, 291] = (170, 260), (230, 262)
    points[:, 0], points[:, 17] = (200, 250), (200, 275)
    points[:, [37, 267, 84, 314]] = (200, 262)
    return points


def test_where_the_lips_are() -> None:
    points = mesh(2)
    points[1] = np.nan
    boxes = mouth_boxes(points)
    assert boxes is not None
    assert boxes[0].tolist() == [170, 250, 230, 275]
    assert np.isnan(boxes[1]).all()
    assert mouth_boxes(points[:, :3]) is None


def test_eyes_that_shut() -> None:
    points = mesh(40)
    points[10:14, [159, 386]] = (135, 151)
    points[20] = np.nan
    shut = eyes_shut(points)
    assert shut is not None
    assert np.flatnonzero(shut).tolist() == [10, 11, 12, 13]
    assert eyes_shut(points[:, :3]) is None


@pytest.mark.parametrize("degrees", [-40, -10, 0, 25])
@pytest.mark.parametrize("rolled", [0, 20])
def test_a_head_that_turns(degrees: float, rolled: float) -> None:
    """Three points of a head in space, turned, seen from far away, and rolled."""
    space = np.array([[-1, 0, 0], [1, 0, 0], [0, 0.3, 1.29]])
    a, r = np.radians(degrees), np.radians(rolled)
    x = space[:, 0] * np.cos(a) + space[:, 2] * np.sin(a)
    flat = np.stack([x, space[:, 1]], axis=1) @ [[np.cos(r), np.sin(r)], [-np.sin(r), np.cos(r)]]
    points = mesh(1)
    points[0, [234, 454, 1]] = 200 + 100 * flat
    angles = turned(points)
    assert angles is not None
    off = 8 if rolled else 1  # the nose also lies lower than both sides
    assert angles[0] == pytest.approx(degrees, abs=off)
    assert turned(points[:, :3]) is None


# ---------------------------------------------------------------- what is said


def test_a_good_film_is_given_no_advice() -> None:
    assert advice(GOOD, TALKS) == []
    assert advice(GOOD, None) == []
    assert sound_warnings(GOOD, LOUD) == []
    assert (
        sound_warnings(Measures(brightness=1, brightness_change=1, burnt=0, sharpness=1), None)
        == []
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"brightness": 30}, "light: the face is dark (30 of 255)"),
        ({"burnt": 0.1}, "light: 10% of the face is burnt out"),
        ({"brightness_change": 60}, "light: the face changes by 60 grey levels"),
        ({"sharpness": 0.1}, "focus: the face is blurred (sharpness 0.10"),
        ({"turned_far": 0.3}, "pose: the head is turned by more than 25 degrees in 30%"),
    ],
)
def test_advice_names_the_number(change: dict[str, float], word: str) -> None:
    import msgspec

    [line] = advice(msgspec.structs.replace(GOOD, **change), TALKS)
    assert line.startswith(word)
    assert len(line) < 140


def test_a_mouth_that_hardly_opens() -> None:
    [line] = advice(GOOD, np.full(50, 0.01))
    assert line.startswith("speech: ")


@pytest.mark.parametrize(
    ("follows", "late", "word"),
    [
        (0.1, None, "hardly follows the video's sound (correlation 0.10"),
        (0.6, 90, "90 ms after the mouth: prepare the video again with --sound-late 90"),
        (0.6, -200, "200 ms before the mouth: prepare the video again with --sound-late -200"),
    ],
)
def test_a_sound_that_does_not_fit(follows: float, late: int | None, word: str) -> None:
    import msgspec

    measures = msgspec.structs.replace(GOOD, follows_sound=follows, sound_late_ms=late)
    [line] = sound_warnings(measures, LOUD)
    assert word in line


def test_a_sound_that_was_moved_by_too_little() -> None:
    import msgspec

    measures = msgspec.structs.replace(GOOD, sound_late_ms=80)
    [line] = sound_warnings(measures, LOUD, moved_ms=120.0)
    assert line.startswith("the sound comes 80 ms after the mouth")
    assert line.endswith("--sound-late 200")


def test_a_silent_sound() -> None:
    [line] = sound_warnings(GOOD, np.zeros(6400, np.int16))
    assert "silent throughout" in line


def test_landmarks_that_say_little() -> None:
    film = Film(
        points=np.zeros((60, 3, 2), np.float32),
        rects=np.tile(np.array([0, 0, 90, 90], np.int32), (60, 1)),
        side=90.0,
        levels=np.repeat([60.0, 160.0], 30),
        spoken=60,
        pcm=LOUD,
    )
    found = measured_film(film, [face(4)])
    assert found.mouth_open is found.turned is found.follows_sound is found.eyes_shut is None
    assert found.brightness == 110
    assert found.brightness_change > 60
