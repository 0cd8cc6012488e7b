# SPDX-License-Identifier: Apache-2.0
"""What the mouth does in each frame, and where the head is."""

from __future__ import annotations

import numpy as np
import pytest
from films import FRAMES, MOST, RECT, REST, SIDE, meshes, openings, sway

from lipsync_fast.errors import TrainingError
from lipsync_fast.train.data import split
from lipsync_fast.train.mouths import CHIN, LIPS, Mouths, opening

REGION = 224
SCALE = (REGION + 8) / SIDE


@pytest.fixture(scope="module")
def mouths() -> Mouths:
    return Mouths(meshes(openings()), [RECT] * FRAMES, REGION, split(FRAMES)[0])


def test_measures_follow_the_mouth_and_not_the_head(mouths: Mouths) -> None:
    true = openings()
    assert np.corrcoef(mouths.opening, true)[0, 1] > 0.999
    assert np.corrcoef(mouths.measures[:, 0], true)[0, 1] > 0.999
    assert abs(np.corrcoef(mouths.measures[:, 2], sway())[0, 1]) < 0.5
    known = mouths.measures[mouths.usable]
    moving = known.std(0) > 0.5
    assert moving[0]
    np.testing.assert_allclose(known[:, moving].std(0), 1, atol=0.05)


def test_shut_frames_are_shut_and_learnt_from(mouths: Mouths) -> None:
    assert set(range(2, REST - 2)) <= set(mouths.shut.tolist()) | set(split(FRAMES)[1])
    assert (openings()[mouths.shut] < 0.1).all()
    assert set(mouths.shut.tolist()) <= set(split(FRAMES)[0])


def test_a_head_is_laid_over_another(mouths: Mouths) -> None:
    shift = (sway()[10] - sway()[40]) * SCALE
    there = mouths.laid_over(10, 40)
    np.testing.assert_allclose(there, [[1, 0, shift], [0, 1, 0]], atol=0.1)
    turned = mouths.turned(mouths.usable)
    moved = np.abs(sway() - np.median(sway()[mouths.usable]))[mouths.usable]
    assert np.corrcoef(turned, moved)[0, 1] > 0.99


def test_the_window_has_lips_and_chin(mouths: Mouths) -> None:
    box = mouths.window(REGION)
    points = mouths.points[:, [*LIPS, CHIN]].reshape(-1, 2)
    inside = (points >= (box.x, box.y)) & (points < (box.right, box.bottom))
    assert inside.mean() > 0.97
    assert box.width * box.height < 0.8 * REGION**2
    assert box.x >= 4
    assert box.bottom <= REGION - 4


def test_opening_is_a_part_of_the_distance_of_the_eyes() -> None:
    true = np.array([0.0, 1.0])
    np.testing.assert_allclose(opening(meshes(true)), [0.5 / 40, (0.5 + MOST) / 40], atol=1e-5)


def test_what_cannot_be_learnt_from() -> None:
    learnt = split(FRAMES)[0]
    with pytest.raises(TrainingError, match=r"110 landmarks a frame.*detector mesh"):
        Mouths(np.zeros((FRAMES, 110, 2), np.float32), [RECT] * FRAMES, REGION, learnt)
    faceless = meshes(openings())
    faceless[10:] = np.nan
    with pytest.raises(TrainingError, match=r"only 10 of \d+ frames show a face"):
        Mouths(faceless, [RECT] * FRAMES, REGION, learnt)
    gap = meshes(openings())
    gap[30:34] = np.nan
    assert not {30, 31, 32, 33} & set(Mouths(gap, [RECT] * FRAMES, REGION, learnt).usable.tolist())
