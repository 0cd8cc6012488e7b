# SPDX-License-Identifier: Apache-2.0
"""The loop is taken from where the mouth is shut in silence."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsync_fast.prepare.loop import choose, longest_piece
from lipsync_fast.prepare.rest import SHUT, at_rest, mouth_opening, quiet

SIDE = 200.0
RNG = np.random.default_rng(7)


def lips(opening: NDArray[np.float64], count: int = 468) -> NDArray[np.float32]:
    """Landmarks whose lips are so far apart, as a part of the side."""
    points = np.full((len(opening), count, 2), 100.0, np.float32)
    lower = {68: 66, 468: 14, 478: 14}[count]
    points[:, lower, 1] += opening.astype(np.float32) * np.float32(SIDE)
    return points


def noise(levels_db: list[float]) -> NDArray[np.int16]:
    """40 ms at each level, in dB of full scale."""
    scale = 32768 * 10 ** (np.repeat(levels_db, 640) / 20)
    return np.clip(RNG.normal(0, 1, len(scale)) * scale, -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("count", [68, 468, 478])
def test_how_far_the_lips_are_apart(count: int) -> None:
    wanted = np.array([0.0, 0.05, 0.3])
    found = mouth_opening(lips(wanted, count), SIDE)
    assert found is not None
    assert found == pytest.approx(wanted, abs=1e-6)


def test_landmarks_without_lips_say_nothing() -> None:
    points = np.zeros((5, 3, 2), np.float32)
    assert mouth_opening(points, SIDE) is None
    assert at_rest(points, SIDE, None) is None


@pytest.mark.parametrize(
    ("floor", "speech"), [(-75.0, -20.0), (-50.0, -25.0), (-45.0, -20.0), (-120.0, -55.0)]
)
def test_silence_is_that_of_its_room(floor: float, speech: float) -> None:
    silent = quiet(noise([floor] * 20 + [speech] * 60 + [floor] * 20))
    assert silent[:20].all()
    assert silent[-20:].all()
    assert not silent[20:80].any()


def test_who_speaks_all_the_time_is_never_silent() -> None:
    assert not quiet(noise([-22.0, -18.0] * 50)).any()
    assert len(quiet(np.zeros(0, np.int16))) == 0


def test_digital_silence_is_silence() -> None:
    assert quiet(np.zeros(6400, np.int16)).all()


def test_both_must_say_so() -> None:
    opening = np.array([0.0] * 30 + [0.2] * 30 + [0.0] * 30 + [0.2] * 30)
    sound = noise([-80.0] * 60 + [-20.0] * 60)
    rest = at_rest(lips(opening), SIDE, sound)
    assert rest is not None
    assert rest[:30].all()
    assert not rest[30:].any()
    no_sound = at_rest(lips(opening), SIDE, None)
    assert no_sound is not None
    assert no_sound.sum() == 60


def test_where_no_face_is_nobody_rests() -> None:
    points = lips(np.zeros(40))
    points[10:20] = np.nan
    rest = at_rest(points, SIDE, noise([-80.0] * 40))
    assert rest is not None
    assert np.flatnonzero(~rest).tolist() == list(range(10, 20))


def test_sound_that_ends_early_is_no_silence() -> None:
    rest = at_rest(lips(np.zeros(40)), SIDE, noise([-80.0] * 25))
    assert rest is not None
    assert rest.sum() == 25


def test_a_click_does_not_end_a_stretch() -> None:
    levels = [-80.0] * 60
    levels[30] = -20.0
    opening = np.zeros(60)
    opening[40:42] = SHUT * 2
    rest = at_rest(lips(opening), SIDE, noise(levels))
    assert rest is not None
    assert rest.all()


def test_the_longest_stretch_between_cuts() -> None:
    rest = np.array([True] * 30 + [False] * 5 + [True] * 50 + [False] * 5)
    assert longest_piece(90, [], rest) == (35, 85)
    assert longest_piece(90, [70], rest) == (35, 70)
    assert longest_piece(90, [40, 50, 60], rest) == (0, 30)
    assert longest_piece(90, [40], None) == (40, 90)
    assert longest_piece(90, [], np.zeros(90, bool)) == (0, 0)


@pytest.mark.parametrize("kind", ["auto", "cycle", "pingpong"])
def test_the_loop_stays_within(kind: str) -> None:
    features = RNG.normal(100, 10, (200, 50)).astype(np.float32).cumsum(axis=0) / 10
    rest = np.zeros(200, bool)
    rest[120:165] = True
    loop = choose(features, kind=kind, rest=rest)  # type: ignore[arg-type]
    assert loop.first >= 120
    assert loop.first + loop.count <= 165
    assert loop.count >= 20
