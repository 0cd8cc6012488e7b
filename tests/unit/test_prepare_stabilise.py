# SPDX-License-Identifier: Apache-2.0
"""Stabilised face crops, against a head whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsync_fast.errors import PrepareError
from lipsync_fast.prepare.stabilise import frames_text, runs, savitzky_golay, track

SIZE = 640, 480
Series = NDArray[np.float64]


def head(frames: int = 250, side: float = 200.0) -> Series:
    """A head that sways and nods at up to 0.5 Hz: left, top, right."""
    t = np.arange(frames) / 25
    x = 320 + 20 * np.sin(2 * np.pi * 0.4 * t) + 6 * np.sin(2 * np.pi * 0.5 * t + 1)
    y = 150 + 10 * np.sin(2 * np.pi * 0.3 * t + 2)
    return np.stack([x - side / 2, y, x + side / 2], axis=1)


def numbers(rects: NDArray[np.int32]) -> Series:
    """left, top, right of the crops."""
    return rects[:, [0, 1, 2]].astype(float)


def error(a: Series, b: Series) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_jitter_goes_and_motion_stays() -> None:
    truth = head()
    jittered = truth + np.random.default_rng(1).normal(0, 2.0, truth.shape)
    made = track(jittered, *SIZE)
    left = error(numbers(made.rects), truth)
    assert left < 0.55 * error(jittered, truth)
    jitter = np.diff(numbers(made.rects), 2, axis=0).std()
    assert jitter < 0.3 * np.diff(jittered, 2, axis=0).std()
    assert made.warnings == []


def test_the_crop_does_not_lag_behind_the_head() -> None:
    truth = head()
    made = numbers(track(truth, *SIZE).rects)
    assert np.abs(made - truth).max() <= 1.0  # rounding, and what a window of 13 frames takes
    middle = made[:, 0] + made[:, 2]
    shifts = range(-4, 5)
    true = truth[:, 0] + truth[:, 2]
    apart = [np.abs(middle[10 + s : 240 + s] - true[10:240]).mean() for s in shifts]
    assert shifts[int(np.argmin(apart))] == 0


def test_one_side_where_the_head_keeps_its_distance() -> None:
    truth = head()
    noise = np.random.default_rng(2).normal(0, 2.0, truth.shape)
    rects = track(truth + noise, *SIZE).rects
    assert set(rects[:, 2] - rects[:, 0]) == {200}
    assert np.array_equal(rects[:, 2] - rects[:, 0], rects[:, 3] - rects[:, 1])


def test_the_side_follows_a_head_that_comes_nearer() -> None:
    truth = head()
    truth[:, 0] -= np.linspace(0, 40, len(truth))
    rects = track(truth, *SIZE).rects
    assert np.abs((rects[:, 2] - rects[:, 0]) - (truth[:, 2] - truth[:, 0])).max() <= 2


def test_one_wrong_frame_is_not_followed() -> None:
    truth = head()
    wrong = truth.copy()
    wrong[100] += [60, -40, 90]
    made = track(wrong, *SIZE)
    assert np.abs(numbers(made.rects) - truth).max() <= 2
    assert any("jumps by up to" in w and "frames 100-101" in w for w in made.warnings)


def test_short_gaps_are_bridged_long_ones_refused_by_number() -> None:
    truth = head()
    gaps = truth.copy()
    gaps[50:60] = np.nan
    gaps[0:3] = np.nan
    made = track(gaps, *SIZE)
    assert np.abs(numbers(made.rects)[50:60] - truth[50:60]).max() < 8
    assert made.bridged == 13
    assert "no face in frames 0-2, 50-59 (bridged)" in made.warnings
    gaps[120:170] = np.nan
    with pytest.raises(PrepareError, match=r"no face in frames 120-169 \(4\.80-6\.80 s\)"):
        track(gaps, *SIZE)
    assert track(gaps, *SIZE, bridge=50).bridged == 63


def test_no_face_at_all() -> None:
    with pytest.raises(PrepareError, match="no face was found in any of the 20 frames"):
        track(np.full((20, 3), np.nan), *SIZE)


def test_a_cut_is_not_smoothed_over() -> None:
    truth = head()
    truth[120:] += [-150, 40, -150]
    made = track(truth, *SIZE)
    assert made.cuts == [120]
    assert any("jumps at frame 120" in w for w in made.warnings)
    assert np.abs(numbers(made.rects) - truth).max() <= 2


def test_a_mouth_outside_the_picture_is_refused() -> None:
    low = head()
    low[100:110, 1] += 250
    with pytest.raises(PrepareError, match="the mouth leaves the picture in frames 1"):
        track(low, *SIZE)


def test_it_is_the_lips_that_must_be_seen() -> None:
    """Where landmarks have lips, the part of the crop in which they might lie says nothing."""
    low = head() + np.array([0, 200, 0])
    with pytest.raises(PrepareError, match="the mouth leaves the picture"):
        track(low, *SIZE)
    x1, y1, x2 = low.T
    lips = np.stack([x1 + 60, y1 + 70, x2 - 60, np.full(len(low), SIZE[1] - 20.0)], axis=1)
    lips[50] = np.nan  # no face there: bridged
    low[50] = np.nan
    made = track(low, *SIZE, mouths=lips)
    assert any("of its side: leave more room" in w for w in made.warnings)
    lips[120:123, 3] = SIZE[1] + 4
    with pytest.raises(PrepareError, match="the mouth leaves the picture in frames 120-122"):
        track(low, *SIZE, mouths=lips)


def test_a_crop_past_the_edge_is_clipped_and_told() -> None:
    low = head() + np.array([0, 130, 0])  # the chin below the edge, the mouth above it
    made = track(low, *SIZE)
    assert made.rects[:, 3].max() == SIZE[1]
    assert any("passes the picture's edge" in w for w in made.warnings)
    nearer = track(head() + np.array([0, 170, 0]), *SIZE)
    assert any("the mouth is near the picture's edge" in w for w in nearer.warnings)


def test_small_faces() -> None:
    assert any("120 pixels wide" in w for w in track(head(side=120), *SIZE).warnings)
    with pytest.raises(PrepareError, match="only 40 pixels wide"):
        track(head(side=40), *SIZE)


@given(st.integers(1, 60), st.integers(0, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_any_length_and_any_gaps(frames: int, gaps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = head(frames) + rng.normal(0, 1, (frames, 3))
    for _ in range(gaps):
        corners[rng.integers(frames)] = np.nan
    if np.isnan(corners).all():
        return
    rects = track(corners, *SIZE).rects
    assert rects.shape == (frames, 4)
    assert (rects >= 0).all()
    assert (rects[:, 2:] <= SIZE).all()
    assert (rects[:, :2] < rects[:, 2:]).all()


def test_quadratics_pass_unchanged() -> None:
    t = np.arange(40.0)
    values = 3 + 2 * t - 0.05 * t**2
    assert np.allclose(savitzky_golay(values, 6, 2), values)


def test_frames_in_words() -> None:
    assert frames_text([3]) == "frame 3"
    assert frames_text([1, 2, 3, 7]) == "frames 1-3, 7"
    assert frames_text(list(range(0, 40, 2))).endswith("and 14 more stretches")
    assert runs(np.array([True, False, True, True])) == [(0, 1), (2, 4)]
