# SPDX-License-Identifier: Apache-2.0
"""Which part of a video is played again and again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsync_fast.prepare.loop import choose

Features = NDArray[np.float32]
BASE = np.random.default_rng(5).uniform(60, 200, (3, 576)).astype(np.float32)


def shown(positions: NDArray[np.float64], turns: NDArray[np.float64] | None = None) -> Features:
    """Pictures of a head at ``positions`` (and ``turns``), with a little noise."""
    p = positions[:, None]
    t = np.zeros_like(p) if turns is None else turns[:, None]
    noise = np.random.default_rng(6).normal(0, 0.3, (len(p), 576))
    return (BASE[0] + 0.1 * p * (BASE[1] - 130) + 0.1 * t * (BASE[2] - 130) + noise).astype(
        np.float32
    )


def test_a_period_is_found() -> None:
    t = np.arange(260) / 80 * 2 * np.pi  # 80 frames round and round
    loop = choose(shown(10 * np.cos(t), 10 * np.sin(t)), longest_s=4.0)
    assert loop.kind == "cycle"
    assert loop.count == 80
    assert loop.seam < 1.3 * loop.step + 0.3
    assert choose(shown(10 * np.cos(t), 10 * np.sin(t))).count in (160, 240)  # the longest


def test_the_same_place_on_the_way_back_is_no_joint() -> None:
    t = np.arange(200)
    swing = 10 * np.sin(2 * np.pi * t / 150)  # passes each place twice, in both directions
    loop = choose(shown(swing), kind="cycle", longest_s=8)
    assert abs(loop.count - 150) <= 2


def test_there_and_back_where_nothing_joins() -> None:
    t = np.arange(150.0)
    features = shown(t / 5 + 3 * np.sin(t / 12))
    loop = choose(features)
    assert loop.kind == "pingpong"
    steps = np.abs(np.diff(features, axis=0)).mean(axis=1)
    ends = steps[loop.first], steps[loop.first + loop.count - 2]
    assert loop.seam == pytest.approx(max(ends))
    assert loop.seam <= loop.step * 1.05
    assert loop.count >= 75


def test_the_turns_are_where_least_moves() -> None:
    speed = np.ones(200)
    speed[[20, 21, 180, 181]] = 0.0
    loop = choose(shown(np.cumsum(speed)), kind="pingpong")
    assert abs(loop.first - 20) <= 1
    assert abs(loop.first + loop.count - 1 - 180) <= 1


def test_no_longer_than_asked_and_not_over_a_cut() -> None:
    features = shown(np.arange(500.0) / 5)
    loop = choose(features, longest_s=6)
    assert loop.count <= 150
    for kind in ("auto", "cycle", "pingpong"):
        loop = choose(features, kind=kind, cuts=[100, 400])  # type: ignore[arg-type]
        assert loop.first >= 100
        assert loop.first + loop.count <= 400


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("kind", ["auto", "cycle", "pingpong"])
def test_hardly_any_frames(frames: int, kind: str) -> None:
    for longest in (0.2, 60):
        loop = choose(shown(np.arange(float(frames))), kind=kind, longest_s=longest)  # type: ignore[arg-type]
        assert loop.first >= 0
        assert loop.count >= 1
        assert loop.first + loop.count <= frames


def test_a_still_picture() -> None:
    loop = choose(np.full((100, 576), 128, np.float32))
    assert (loop.seam, loop.step) == (0, 0)
