# SPDX-License-Identifier: Apache-2.0
"""Face rectangles of other software: clipped, mended, and what a person is told of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.avatars.importing.rectangles import Track, settled
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.geometry import Rect

WIDTH, HEIGHT = 200, 160
NONE = (np.nan,) * 4


def track(*rects: tuple[float, ...]) -> Track:
    return settled(np.array(rects, np.float64), WIDTH, HEIGHT, "r.json")


def said(*rects: tuple[float, ...]) -> list[str]:
    return track(*rects).warnings(WIDTH, HEIGHT)


def test_good_ones_stay_and_nothing_is_said() -> None:
    good = [(40 + i, 30, 140 + i, 130) for i in range(9)]
    made = track(*good)
    assert made.rects == made.wanted == [Rect.from_corners(*corners) for corners in good]
    assert (made.lost, made.warnings(WIDTH, HEIGHT)) == ([], [])


def test_they_are_truncated_and_cut_at_the_edge() -> None:
    assert track((40.9, 30.9, 140.9, 130.9)).rects == [Rect(40, 30, 100, 100)]
    made = track((-20.5, 30, 60, 110), (150, 100, 250, 200))
    assert made.rects == [Rect(0, 30, 60, 80), Rect(150, 100, 50, 60)]
    (warning,) = (w for w in made.warnings(WIDTH, HEIGHT) if "edge" in w)
    assert "up to 50 pixels" in warning
    assert "2 frames (0, 1)" in warning


def test_a_crop_that_touches_the_edge() -> None:
    assert said((40, 30, 140, 130)) == []
    assert said((40, 0, 140, 100)) == []  # above is the forehead
    for rect in ((1, 30, 101, 130), (99, 30, 199, 130), (40, 60, 140, 160)):
        assert said(rect) == ["mouth near the edge: the face crop touches it in frame 0"]


@pytest.mark.parametrize(
    "lost",
    [NONE, (50, 50, 50, 50), (90, 50, 40, 99), (300, 0, 400, 100), (0, 0, 7, 99), (1e300,) * 4],
)
def test_a_frame_without_a_face(lost: tuple[float, ...]) -> None:
    """Its rectangle lies between those around it."""
    rects: list[tuple[float, ...]] = [(40 + 2 * i, 30, 140 + 2 * i, 130) for i in range(10)]
    rects[5] = lost
    made = track(*rects)
    assert made.lost == [5]
    assert made.rects[5] == Rect(50, 30, 100, 100)
    assert made.warnings(WIDTH, HEIGHT)[0].startswith("frame 5 without a face")
    rects[5], rects[9] = rects[4], lost
    assert track(*rects).rects[9] == track(*rects).rects[8]


@pytest.mark.parametrize("count", [1, 2, 10])
def test_too_many_without_a_face(count: int) -> None:
    rects: list[tuple[float, ...]] = [(40, 30, 140, 130)] * 10
    rects[:count] = [(7, 7, 7, 7)] * count
    if count == 1:
        assert track(*rects).lost == [0]
        return
    with pytest.raises(AvatarImportError, match=rf"r\.json: {count} of 10 frames .*frame 0: 7, 7"):
        track(*rects)


def test_jumps() -> None:
    still = [(40, 30, 140, 130)] * 5
    assert said(*still, (42, 32, 138, 128)) == []
    (grown,) = said(*still, (35, 25, 150, 140))
    assert "changes its size by up to 15%" in grown
    assert "frame 5" in grown
    (moved,) = said(*still, (60, 30, 160, 130), *still)
    assert "moves by up to 20%" in moved
    assert "2 frames (5, 6)" in moved


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.floats(width=64)] * 4), min_size=1, max_size=12))
def test_any_numbers(rects: list[tuple[float, ...]]) -> None:
    """Refused, or usable: inside the frame and large enough to be resized."""
    try:
        made = track(*rects)
    except AvatarImportError:
        return
    for rect in made.rects:
        x1, y1, x2, y2 = rect.corners
        assert 0 <= x1 < x2 <= WIDTH
        assert 0 <= y1 < y2 <= HEIGHT
    assert all(isinstance(w, str) for w in made.warnings(WIDTH, HEIGHT))
