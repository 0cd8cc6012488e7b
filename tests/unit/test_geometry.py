# SPDX-License-Identifier: Apache-2.0
"""Rectangles: one type, whose corners are asked for, and whose bytes are four numbers in a row."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.geometry import Rect

NUMBERS = st.integers(-5_000, 5_000)
SIDES = st.integers(0, 5_000)
RECTS = st.builds(Rect, NUMBERS, NUMBERS, SIDES, SIDES)


@given(RECTS)
def test_corners_there_and_back(rect: Rect) -> None:
    x1, y1, x2, y2 = rect.corners
    assert (x1, y1, x2, y2) == (rect.x, rect.y, rect.right, rect.bottom)
    assert Rect.from_corners(x1, y1, x2, y2) == rect
    assert hash(Rect.from_corners(x1, y1, x2, y2)) == hash(rect)
    assert rect.size == (rect.width, rect.height) == (x2 - x1, y2 - y1)


@given(RECTS)
def test_bytes_are_those_of_four_numbers(rect: Rect) -> None:
    plain = (rect.x, rect.y, rect.width, rect.height)
    for module in (msgspec.json, msgspec.msgpack):
        data = module.encode(rect)
        assert data == module.encode(plain)
        assert module.decode(data, type=Rect) == rect


@pytest.mark.parametrize(
    "data", [b"[1,2,3]", b"[1,2,3,4,5]", b'[1,2,3,"4"]', b"[1,2,3,4.5]", b"{}"]
)
def test_other_messages_are_refused(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=Rect)


def test_it_is_no_tuple() -> None:
    """So that corners are never unpacked from it, nor it from corners, by mistake."""
    rect = Rect(1, 2, 3, 4)
    with pytest.raises(TypeError):
        tuple(rect)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        rect[0]  # type: ignore[index]
    assert rect != rect.corners
    assert rect != (1, 2, 3, 4)


def test_what_it_cuts_out() -> None:
    picture = np.arange(60).reshape(6, 10)
    assert np.array_equal(picture[Rect(2, 1, 3, 4).slices], picture[1:5, 2:5])
    part, face = Rect(10, 20, 50, 40), Rect(15, 30, 20, 10)
    assert face.seen_from(part) == Rect(5, 10, 20, 10)
    assert face in part
    assert part not in face
    assert all(Rect(*at, 50, 40) not in part for at in ((9, 20), (10, 19), (11, 20), (10, 21)))
    assert Rect(3, 5, 10, 7).grown(4, 15) == Rect.from_corners(0, 1, 15, 15)
    assert Rect(3, 5, 7, 9).scaled(0.5) == Rect(2, 2, 4, 4), "each number by itself"
    assert Rect.of_size((640, 480)) == Rect(0, 0, 640, 480)
