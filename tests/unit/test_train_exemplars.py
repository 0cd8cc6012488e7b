# SPDX-License-Identifier: Apache-2.0
"""A few frames stand for a film's mouths, and measures say which of them are meant."""

from __future__ import annotations

import numpy as np
import pytest
from films import FRAMES, RECT, film, meshes, openings

from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.train.data import Crops, split
from lipsync_fast.train.exemplars import COUNT, Exemplars, clusters
from lipsync_fast.train.mouths import MEASURES, Mouths

REGION = 224
ALL = np.ones(MEASURES, np.float32)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    folder = film(tmp_path_factory.mktemp("films") / "film")
    return Crops(PreparedAvatar.open(folder), REGION)


@pytest.fixture(scope="module")
def mouths() -> Mouths:
    return Mouths(meshes(openings()), [RECT] * FRAMES, REGION, split(FRAMES)[0])


def test_they_span_the_film_and_are_of_what_is_learnt_from(crops: Crops, mouths: Mouths) -> None:
    chosen = Exemplars(crops, mouths, ALL, seed=1)
    assert 4 <= len(chosen) <= COUNT
    assert set(chosen.frames.tolist()) <= set(mouths.usable.tolist())
    assert len(set(chosen.frames.tolist())) == len(chosen)
    gaps = mouths.opening[chosen.frames]
    assert (np.diff(gaps) >= 0).all()
    known = mouths.opening[mouths.usable]
    assert gaps[0] <= np.quantile(known, 0.1)
    assert gaps[-1] >= np.quantile(known, 0.9)
    again = Exemplars(crops, mouths, ALL, seed=1)
    np.testing.assert_array_equal(again.frames, chosen.frames)


def test_shares_tell_the_opening_back(crops: Crops, mouths: Mouths) -> None:
    chosen = Exemplars(crops, mouths, ALL, seed=1)
    shares = chosen.shares(mouths.measures[mouths.usable])
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    told = shares @ mouths.opening[chosen.frames]
    assert np.corrcoef(told, mouths.opening[mouths.usable])[0, 1] > 0.97
    own = chosen.shares(mouths.measures[chosen.frames])
    np.testing.assert_array_equal(own.argmax(1), np.arange(len(chosen)))


def test_what_cannot_be_heard_counts_little(crops: Crops, mouths: Mouths) -> None:
    deaf = np.zeros(MEASURES, np.float32)
    deaf[0] = 1
    chosen = Exemplars(crops, mouths, deaf, seed=1)
    some = mouths.measures[mouths.usable].copy()
    other = some.copy()
    other[:, 1:] = some[::-1, 1:]
    gaps = mouths.opening[chosen.frames]
    np.testing.assert_allclose(
        chosen.shares(other) @ gaps, chosen.shares(some) @ gaps, atol=0.15 * gaps.max()
    )


def test_clusters_of_few_points_are_those_points() -> None:
    points = np.repeat(np.array([[0, 0], [5, 0], [0, 7]], np.float32), 4, 0)
    middles, part = clusters(points, 16, np.random.default_rng(0))
    assert len(middles) == 3
    np.testing.assert_allclose(middles[part], points)
