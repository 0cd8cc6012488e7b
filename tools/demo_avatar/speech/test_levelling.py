# SPDX-License-Identifier: Apache-2.0
"""What a user of ``Leveller`` would miss; run by ``pytest test_levelling.py``."""

from __future__ import annotations

import numpy as np
import pytest
from levelling import F32, Leveller, levelled

RATE = 16_000


def speech_like(seconds: float = 6.0) -> F32:
    """Bursts of noise with pauses between them, over a faint hiss."""
    rng = np.random.RandomState(0)
    t = np.arange(int(seconds * RATE)) / RATE
    talks = (np.sin(2 * np.pi * 0.4 * t) > -0.3) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    return (0.1 * talks * rng.randn(len(t)) + 1e-4 * rng.randn(len(t))).astype(np.float32)


@pytest.mark.parametrize("most", [1, 100, 159, 160, 3000, 50_000])
def test_pieces_change_nothing(most: int) -> None:
    pcm, rng, leveller = speech_like(), np.random.RandomState(most), Leveller()
    out, at = [], 0
    while at < len(pcm):
        size = rng.randint(1, most + 1)
        out.append(leveller.push(pcm[at : at + size]))
        at += size
    out.append(leveller.finish())
    np.testing.assert_array_equal(np.concatenate(out), levelled(pcm))


@pytest.mark.parametrize("db", [-40.0, -20.0, 6.0])
def test_another_level_soon_sounds_the_same(db: float) -> None:
    pcm = speech_like()
    once, other = levelled(pcm), levelled((pcm * 10 ** (db / 20)).astype(np.float32))
    late = slice(3 * RATE, None)
    error = np.sqrt(np.mean((once[late] - other[late]) ** 2) / np.mean(once[late] ** 2))
    assert error < 0.1


def test_pauses_are_not_raised() -> None:
    pcm = np.concatenate([speech_like(), 1e-4 * np.random.RandomState(1).randn(5 * RATE)])
    gains = np.abs(levelled(pcm.astype(np.float32))[-RATE:]) / np.abs(pcm[-RATE:])
    assert gains.max() - gains.min() < 0.01 * gains.max()
