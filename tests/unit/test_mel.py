# SPDX-License-Identifier: Apache-2.0
"""The native mel stream against its numpy twin, and its independence of how a stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsync_fast._native import MelStream, mel_rows_at
from lipsync_fast.audio.mel_numpy import mel


def in_pieces(pcm: NDArray[np.float32], sizes: list[int]) -> NDArray[np.float32]:
    stream, rows, at = MelStream(), [], 0
    for size in sizes:
        rows.append(stream.push(pcm[at : at + size]))
        at += size
    rows += [stream.push(pcm[at:]), stream.finish()]
    return np.concatenate(rows)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 9_000),
    seed=st.integers(0, 1_000),
    sizes=st.lists(st.integers(0, 2_000), max_size=12),
)
def test_pieces_equal_the_whole_bit_for_bit(length: int, seed: int, sizes: list[int]) -> None:
    pcm = np.random.RandomState(seed).uniform(-1, 1, length).astype(np.float32)
    whole = in_pieces(pcm, [])
    assert whole.shape == (1 + length // 200, 80)
    assert np.array_equal(in_pieces(pcm, sizes), whole)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 9_000),
    seed=st.integers(0, 1_000),
    place=st.floats(0, 1),
    count=st.integers(1, 20),
    before=st.integers(0, 500),
)
def test_rows_cut_out_of_a_stream_are_the_streams_own(
    length: int, seed: int, place: float, count: int, before: int
) -> None:
    pcm = np.random.RandomState(seed).uniform(-1, 1, length).astype(np.float32)
    whole = in_pieces(pcm, [])
    first = int(place * (len(whole) - 1))
    count = min(count, len(whole) - first)
    start = max(0, 200 * first - 401 - before)
    end = 200 * (first + count - 1) + 400
    part = mel_rows_at(pcm[start:end], start, first, count)
    assert np.array_equal(part, whole[first : first + count])


def test_a_part_that_lacks_what_its_rows_see_is_refused() -> None:
    with pytest.raises(ValueError, match="row 4 needs those from 399 on"):
        mel_rows_at(np.zeros(800, np.float32), 400, 4, 1)
    for start, first, count in (
        (-1, 0, 1),
        (0, -1, 1),
        (0, 0, 0),
        (0, 0, 1 << 40),
        (0, 1 << 60, 1),
    ):
        with pytest.raises(ValueError, match="expected 0 or more"):
            mel_rows_at(np.zeros(800, np.float32), start, first, count)


@pytest.mark.parametrize("level", [1.0, 0.1, 1e-4, 0.0])
@pytest.mark.parametrize("kind", ["noise", "tone", "dc"])
def test_agrees_with_the_numpy_twin(kind: str, level: float) -> None:
    t = np.arange(16_000)
    wave = {
        "noise": np.random.RandomState(1).uniform(-1, 1, 16_000),
        "tone": np.sin(t * 0.3),
        "dc": np.ones(16_000),
    }[kind]
    pcm = (wave * level).astype(np.float32)
    assert np.abs(in_pieces(pcm, [777, 1]) - mel(pcm)).max() < 1e-5


def test_rows_come_as_soon_as_they_are_complete() -> None:
    stream = MelStream()
    assert len(stream.push(np.zeros(399, np.float32))) == 0
    assert len(stream.push(np.zeros(1, np.float32))) == 1
    assert len(stream.push(np.zeros(200, np.float32))) == 1
    assert (stream.samples, stream.rows) == (600, 2)


def test_misuse_is_refused() -> None:
    stream = MelStream()
    with pytest.raises(ValueError, match="one dimension"):
        stream.push(np.zeros((2, 2), np.float32))
    with pytest.raises(TypeError):
        stream.push(np.zeros(2, np.float64))  # type: ignore[arg-type]
    stream.finish()
    with pytest.raises(RuntimeError):
        stream.push(np.zeros(1, np.float32))
    with pytest.raises(RuntimeError):
        stream.finish()
