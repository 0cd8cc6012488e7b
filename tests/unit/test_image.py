# SPDX-License-Identifier: Apache-2.0
"""The native image path against OpenCV and against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.geometry import Corners


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("source", "target"),
    [((200, 200), (328, 328)), ((328, 328), (177, 177)), ((341, 299), (328, 328)),
     ((5, 1), (328, 328)), ((1, 1), (7, 3)), ((1000, 800), (328, 328)), ((328, 328), (640, 511))],
)  # fmt: skip
def test_resize_is_opencv_bicubic_within_one_level(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = noise(*source)
    ours = _native.resize_cubic(picture, *target)
    theirs = cv2.resize(picture, target[::-1], interpolation=cv2.INTER_CUBIC)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.1


def test_resize_of_a_part_of_a_larger_picture() -> None:
    picture = noise(50, 60)
    part = picture[3:40, 5:55]
    assert np.array_equal(
        _native.resize_cubic(part, 20, 20), _native.resize_cubic(np.ascontiguousarray(part), 20, 20)
    )
    assert np.array_equal(_native.resize_cubic(part, 37, 50), part)


def test_region_input_and_output() -> None:
    crop = noise(40, 40)
    planes = _native.region_input(crop, 4)
    inner = crop[4:36, 4:36, ::-1].transpose(2, 0, 1).astype(np.float32) / 255
    assert np.array_equal(planes[:3], inner)
    masked = inner.copy()
    masked[:, 5 : 32 - 10, 5 : 32 - 5] = 0
    assert np.array_equal(planes[3:], masked)
    values = np.random.RandomState(1).uniform(0, 1, (3, 32, 32)).astype(np.float32)
    expected = (values * 255).astype(np.uint8)[::-1].transpose(1, 2, 0)
    assert np.array_equal(_native.region_output(values), expected)


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 59), y=st.integers(0, 39), w=st.integers(1, 60), h=st.integers(1, 40),
    keep=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_compose_changes_the_rectangle_alone(
    x: int, y: int, w: int, h: int, keep: bool, seed: int
) -> None:
    w, h = min(w, 60 - x), min(h, 40 - y)
    frame, crop, region = noise(40, 60, seed), noise(40, 40, 1), noise(24, 32, 2)
    corner = seed % 9, seed % 17
    mask = np.random.RandomState(seed).randint(0, 2, (h, w)).astype(np.uint8) if keep else None
    patch = crop.copy()
    patch[corner[1] : corner[1] + 24, corner[0] : corner[0] + 32] = region
    resized = _native.resize_cubic(patch, h, w)
    expected = frame.copy()
    target = expected[y : y + h, x : x + w]
    target[...] = resized if mask is None else np.where(mask[..., None] != 0, target, resized)
    _native.compose(crop, region, corner, frame, Corners(x, y, x + w, y + h), mask)
    assert np.array_equal(frame, expected)


def test_misuse_is_refused() -> None:
    crop, region, frame = noise(40, 40), noise(32, 32), noise(50, 50)
    in_a_corner = Corners(0, 0, 10, 10)
    for box in ((-1, 0, 10, 10), (0, 0, 51, 10), (5, 5, 5, 10), (0, 20, 10, 10)):
        with pytest.raises(ValueError, match="does not lie within"):
            _native.compose(crop, region, (4, 4), frame, Corners(*box))
    for corner in ((-1, 0), (0, -1), (9, 0), (0, 9)):
        with pytest.raises(ValueError, match="does not lie within the crop"):
            _native.compose(crop, region, corner, frame, in_a_corner)
    with pytest.raises(ValueError, match="keep has shape"):
        _native.compose(crop, region, (4, 4), frame, in_a_corner, np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match="expected a square"):
        _native.compose(noise(40, 41), region, (4, 4), frame, in_a_corner)
    frame.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _native.compose(crop, region, (4, 4), frame, in_a_corner)
    with pytest.raises(ValueError, match="sides"):
        _native.resize_cubic(crop, 0, 10)
    with pytest.raises(ValueError, match="packed"):
        _native.resize_cubic(noise(40, 40)[:, ::2], 10, 10)
    with pytest.raises(ValueError, match="3 x height x width"):
        _native.region_output(np.zeros((2, 4, 5), np.float32))
