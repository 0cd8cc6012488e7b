# SPDX-License-Identifier: Apache-2.0
"""Which captured graphs make a batch, and in which order they are captured."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.engine.backends.cuda.graphs import (
    LAUNCH_COST,
    SIZES,
    cover,
    first_batch,
    most_frames,
    warming_order,
)

SOME = st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 16]), min_size=1, max_size=4)


@cache
def least(count: int, sizes: tuple[int, ...], each: float) -> float:
    """The least cost, by trying everything."""
    if count <= 0:
        return -count
    return each + min(least(count - size, sizes, each) for size in sizes)


@given(st.integers(0, 40), SOME, st.sampled_from([0.0, 0.5, 1.0, 4.0, 30.0]))
def test_a_cover_holds_all_frames_at_the_least_cost(
    count: int, sizes: list[int], each: float
) -> None:
    found = cover(count, sizes, each)
    assert set(found) <= set(sizes)
    assert sum(found) >= count
    assert list(found) == sorted(found, reverse=True)
    cost = sum(found) - count + each * len(found)
    if count <= 2 * max(sizes):
        assert cost == least(count, tuple(sizes), each)
    if found:
        assert sum(found) - count < found[-1], "its last graph is needed"


@given(st.integers(1, 500))
def test_without_a_cost_of_graphs_nothing_is_padded(count: int) -> None:
    assert sum(cover(count, SIZES, 0.0)) == count


def test_typical_batches() -> None:
    assert LAUNCH_COST == 4.0, "what follows depends on it"
    assert cover(0, SIZES) == ()
    assert cover(64, SIZES) == (64,)
    assert cover(13, SIZES) == (16,)
    assert cover(63, SIZES) == (64,)
    assert cover(17, SIZES) == (16, 1)
    assert cover(40, SIZES) == (32, 8)
    assert cover(200, SIZES) == (64, 64, 64, 8)
    assert cover(5, [1]) == (1,) * 5, "while there is only the smallest one"
    with pytest.raises(ValueError, match="no graphs"):
        cover(3, [])


@given(st.integers(1, 300), SOME)
def test_batch_after_batch_takes_all(count: int, sizes: list[int]) -> None:
    left, batches = count, 0
    while left:
        size, taken = first_batch(left, sizes)
        assert size in sizes
        assert 1 <= taken <= size
        left, batches = left - taken, batches + 1
    assert batches <= count


def test_order_of_capture_and_sizes_that_fit() -> None:
    assert warming_order([64, 1, 8]) == [1, 8, 64]
    assert most_frames(100, 10, 0.5) == [1, 2, 4]
    assert most_frames(100, 1000, 0.5) == [1], "one frame must be possible"
    assert most_frames(1 << 40, 1, 1.0) == list(SIZES)
