# SPDX-License-Identifier: Apache-2.0
"""A mouth is held against its own sound, against another's, and against its own moved aside."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsync_fast.prepare.heard import FOLLOWS, SURE, heard, is_silent

FRAMES = 500
MS = 16
"""Samples."""


def said(seed: int, frames: int = FRAMES) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """How far a mouth is open, and what it says: louder and brighter the wider, with pauses."""
    rng = np.random.default_rng(seed)
    shape = np.exp(-((np.arange(-6, 7) / 1.8) ** 2) / 2)
    wave = np.convolve(rng.normal(0, 1, frames + 12), shape, "valid")
    opening = 0.03 * np.maximum(0, wave / wave.std())
    fine = np.interp(np.arange(640 * frames), 640 * np.arange(frames) + 320, opening)
    hiss = rng.normal(0, 1, len(fine))
    dull = np.convolve(hiss, np.full(16, 1 / 16), "same")
    loud = 4000 * fine / 0.03 * (0.3 * hiss * fine / 0.06 + dull) + 20 * hiss
    seen = opening + rng.normal(0, 0.004, frames)
    return seen, np.clip(loud, -32768, 32767).astype(np.int16)


def test_ones_own_sound() -> None:
    opening, pcm = said(1)
    found = heard(opening, pcm)
    assert found is not None
    assert found.follows > 0.6
    assert abs(found.late_ms + 20) < 15  # here nothing is ahead, and a real mouth is by 20 ms


@pytest.mark.parametrize("ms", [-300, -120, -70, 70, 120, 300])
def test_how_late_it_is(ms: int) -> None:
    opening, pcm = said(2)
    plain, moved = heard(opening, pcm), heard(opening, np.roll(pcm, ms * MS))
    assert plain is not None
    assert moved is not None
    assert moved.follows > SURE
    assert moved.late_ms - plain.late_ms == pytest.approx(ms, abs=15)


@pytest.mark.parametrize("seed", range(3, 9))
def test_somebody_elses_sound(seed: int) -> None:
    opening, _ = said(1)
    found = heard(opening, said(seed)[1])
    assert found is not None
    assert found.follows < FOLLOWS


def test_far_out_of_step_is_as_another_sound() -> None:
    opening, pcm = said(1)
    found = heard(opening, np.roll(pcm, 1700 * MS))
    assert found is not None
    assert found.follows < FOLLOWS


def test_frames_without_a_face_are_passed_over() -> None:
    opening, pcm = said(1)
    opening[100:140] = np.nan
    found = heard(opening, pcm)
    assert found is not None
    assert found.follows > 0.5


def test_too_little_says_nothing() -> None:
    opening, pcm = said(1)
    assert heard(opening[:240], pcm[: 240 * 640]) is None
    assert heard(opening, np.zeros_like(pcm)) is None
    assert heard(np.full(FRAMES, np.nan), pcm) is None
    assert heard(np.full(FRAMES, 0.02), pcm) is None
    assert heard(opening, pcm[:100]) is None


def test_silence_throughout() -> None:
    assert is_silent(np.zeros(0, np.int16))
    assert is_silent(np.full(640, -20, np.int16))
    assert not is_silent(np.array([0, -32768], np.int16))


def test_a_long_film_is_no_matter() -> None:
    opening, pcm = said(4, 8000)
    found = heard(opening, pcm)
    assert found is not None
    assert found.follows > 0.6
