# SPDX-License-Identifier: Apache-2.0
"""Automatic gain: what it evens out, what it leaves alone, and that pieces change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.arrays import F32
from lipsync_fast.audio.gain import BLOCK, MOST_DB, TARGET_DB, AutomaticGain, levelled
from lipsync_fast.timing import SAMPLE_RATE


def speech_like(seconds: float = 6.0) -> F32:
    """Bursts of noise with pauses between them, over a faint hiss."""
    rng = np.random.RandomState(0)
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    talks = (np.sin(2 * np.pi * 0.4 * t) > -0.3) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    return (0.1 * talks * rng.randn(len(t)) + 1e-4 * rng.randn(len(t))).astype(np.float32)


def decibels(pcm: F32) -> float:
    return 10 * float(np.log10(np.mean(np.square(pcm, dtype=np.float64)) + 1e-12))


def loudest(pcm: F32) -> float:
    """The level of the blocks that one in a hundred is louder than."""
    blocks = pcm[: len(pcm) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return float(np.quantile([decibels(b) for b in blocks], 0.99))


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(0, 9_000),
    start=st.integers(0, 80_000),
    sizes=st.lists(st.integers(0, 2_000), max_size=40),
)
def test_pieces_change_nothing(length: int, start: int, sizes: list[int]) -> None:
    pcm = speech_like()[start : start + length]
    gain, out, at = AutomaticGain(), [], 0
    for size in [*sizes, length]:
        out.append(gain.push(pcm[at : at + size]))
        at = min(length, at + size)
        pushed = sum(map(len, out))
        assert pushed == at // BLOCK * BLOCK, "no more than a block is held back"
    out.append(gain.finish())
    np.testing.assert_array_equal(np.concatenate(out), levelled(pcm))
    assert sum(map(len, out)) == len(pcm)
    assert len(gain.finish()) == 0


@pytest.mark.parametrize("db", [-30.0, -20.0, -6.0, 6.0])
def test_another_level_soon_sounds_the_same(db: float) -> None:
    pcm = speech_like()
    once, other = levelled(pcm), levelled((pcm * 10 ** (db / 20)).astype(np.float32))
    late = slice(3 * SAMPLE_RATE, None)
    error = np.sqrt(np.mean((once[late] - other[late]) ** 2) / np.mean(once[late] ** 2))
    assert error < 0.1
    assert loudest(other[late]) == pytest.approx(TARGET_DB, abs=2.0)


def test_pauses_are_not_raised() -> None:
    pcm = np.concatenate([speech_like(), 1e-4 * np.random.RandomState(1).randn(5 * SAMPLE_RATE)])
    pcm = pcm.astype(np.float32)
    gains = np.abs(levelled(pcm)[-SAMPLE_RATE:]) / np.abs(pcm[-SAMPLE_RATE:])
    assert gains.max() - gains.min() < 0.01 * gains.max()


@pytest.mark.parametrize(
    ("db", "silence_s"), [(-100.0, 0.0), (-65.0, 0.0), (-45.0, 0.0), (-30.0, 0.0), (-65.0, 1.0)]
)
def test_noise_alone_stays_as_it_is(db: float, silence_s: float) -> None:
    """A device's, a line's, a room's: from the first sample on; and after silence where it is too
    faint to be speech."""
    rng = np.random.RandomState(3)
    noise = 10 ** (db / 20) * rng.randn(3 * SAMPLE_RATE)
    pcm = np.concatenate([np.zeros(int(silence_s * SAMPLE_RATE)), noise]).astype(np.float32)
    np.testing.assert_array_equal(levelled(pcm), pcm)


def test_loud_sound_is_lowered_at_once_and_never_beyond_full_scale() -> None:
    quiet, rng = speech_like() * 0.05, np.random.RandomState(5)
    shout = np.clip(0.7 * rng.randn(SAMPLE_RATE), -1, 1)
    out = levelled(np.concatenate([quiet, shout]).astype(np.float32))
    assert np.abs(out).max() <= 1
    assert decibels(out[len(quiet) + 4 * BLOCK :][: 10 * BLOCK]) < TARGET_DB + 2


def test_there_is_an_end_to_what_is_raised() -> None:
    pcm = (speech_like() * 0.01).astype(np.float32)
    faint = (pcm * 0.2).astype(np.float32)
    assert loudest(levelled(faint)) <= loudest(faint) + MOST_DB + 0.1


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_constants(value: float) -> None:
    out = levelled(np.full(4_000, value, np.float32))
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 1
