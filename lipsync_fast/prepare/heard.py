# SPDX-License-Identifier: Apache-2.0
"""Whether the mouth in a video follows the video's own sound, and how late the sound is.

How far the lips are apart is foretold from the sound's bands (a ridge regression), each eighth of
the video from the other seven; what is foretold is held against what is seen (correlation). For
the person's own speech that is some 0.5 to 0.7; for any other sound it is hardly more than 0.2,
since what is learnt in one part of a video then says nothing of another. It is done for the sound
moved by up to half a second to both sides: where it fits best is where the sound should lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.prepare.sound import FRAME_SAMPLES
from lipsync_fast.timing import FPS, SAMPLE_RATE

LEAST_S = 10.0
"""Shorter videos do not say."""
MOST_S = 300.0
"""So much of a longer one is listened to."""
FOLLOWS = 0.3
"""From this correlation on the mouth follows the sound."""
SURE = 0.35
"""From this one on it is said how late the sound is."""
REACH = 12
"""Frames by which the sound is moved at most."""
LEAD_MS = 20.0
"""A mouth is so much ahead of what is heard of it."""

F64 = NDArray[np.float64]
_BANDS, _LOWEST, _HIGHEST = 16, 100.0, 7000.0
_SIZE = 1024
_PARTS, _GAP = 8, 12
_SLOW = 25
_RIDGE = 0.1
_SILENT = 33
"""A sound that never has a larger sample (of 32768) is none."""


@dataclass(frozen=True)
class Heard:
    """What came of it.

    Attributes:
        follows: the correlation, at the place where it is largest.
        late_ms: by how much the sound comes after the mouth; negative: before it.
    """

    follows: float
    late_ms: float


def heard(opening: F64, pcm: NDArray[np.int16]) -> Heard | None:
    """Hold a mouth against a sound.

    Args:
        opening: N: how far the lips are apart in each frame; NaN where that is not known.
        pcm: 640 samples for each frame.

    Returns:
        None where there is too little to say anything: under 10 s, a silent sound, a still mouth.
    """
    frames = min(len(opening), len(pcm) // FRAME_SAMPLES, round(MOST_S * FPS))
    if frames < LEAST_S * FPS or is_silent(pcm[: frames * FRAME_SAMPLES]):
        return None
    known = np.flatnonzero(np.isfinite(opening[:frames]))
    if len(known) < frames // 2:
        return None
    seen = _quick(np.interp(np.arange(frames), known, opening[known])[:, None])[:, 0]
    bands = _quick(_bands(pcm, frames))
    bands /= bands.std(axis=0) + 1e-6
    if seen.std() < 1e-9:
        return None
    inner = slice(REACH + 1, frames - REACH - 1)
    found = np.array([_foretold(bands, seen, k, inner) for k in range(-REACH, REACH + 1)])
    best = int(found.argmax())
    late = 1000 / FPS * (_peak(found, best) - REACH) - LEAD_MS
    return Heard(float(found[best]), float(late))


def is_silent(pcm: NDArray[np.int16]) -> bool:
    """Whether nothing is to be heard at all."""
    return not len(pcm) or max(int(pcm.max()), -int(pcm.min())) < _SILENT


def _foretold(bands: F64, seen: F64, late: int, inner: slice) -> float:
    """Correlation of the opening with what the sound ``late`` frames later foretells."""
    given = np.concatenate([np.roll(bands, near - late, axis=0) for near in (-1, 0, 1)], axis=1)
    given, wanted = given[inner], seen[inner]
    # Each part is foretold from sums over all frames less those over the part and its margins.
    out = np.empty(len(wanted))
    everything = np.concatenate([given, wanted[:, None], np.ones((len(wanted), 1))], axis=1)
    whole = everything.T @ everything
    for first, end in pairwise(np.linspace(0, len(wanted), _PARTS + 1).astype(int).tolist()):
        near = everything[max(0, first - _GAP) : end + _GAP]
        sums = whole - near.T @ near
        count, level = sums[-1, -1], sums[-1, -2] / sums[-1, -1]
        middle = sums[-1, :-2] / count
        spread = sums[:-2, :-2] - count * np.outer(middle, middle)
        common = sums[:-2, -2] - count * middle * level
        weights = np.linalg.solve(spread + _RIDGE * count * np.eye(len(middle)), common)
        out[first:end] = (given[first:end] - middle) @ weights + level
    if out.std() < 1e-12 or wanted.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(out, wanted)[0, 1])


def _peak(values: F64, best: int) -> float:
    """Where the parabola through the best value and its neighbours is highest."""
    if not 0 < best < len(values) - 1:
        return float(best)
    before, at, behind = values[best - 1 : best + 2]
    bend = before - 2 * at + behind
    return best + (0.5 * float((before - behind) / bend) if bend < 0 else 0.0)


def _quick(values: F64) -> F64:
    """N x D without what changes over more than two seconds."""
    reach = min(_SLOW, (len(values) - 1) // 2)
    padded = np.pad(values, ((reach + 1, reach), (0, 0)), mode="reflect")
    summed = padded.cumsum(axis=0)
    size = 2 * reach + 1
    return np.asarray(values - (summed[size:] - summed[:-size]) / size, np.float64)


def _bands(pcm: NDArray[np.int16], frames: int) -> F64:
    """Logarithms of the power in 16 bands around each frame: N x 16."""
    margin = (_SIZE - FRAME_SAMPLES) // 2
    window = np.hanning(_SIZE)
    filters = _filters()
    power = np.empty((frames, _BANDS))
    for first in range(0, frames, 500):
        end = min(frames, first + 500)
        low, high = first * FRAME_SAMPLES - margin, end * FRAME_SAMPLES + margin
        part = pcm[max(0, low) : high].astype(np.float64) / 32768
        part = np.pad(part, (max(0, -low), high - low - len(part) - max(0, -low)))
        pieces = np.lib.stride_tricks.sliding_window_view(part, _SIZE)[::FRAME_SAMPLES]
        power[first:end] = np.abs(np.fft.rfft(pieces * window, axis=1)) ** 2 @ filters
    floor = 1e-4 * np.percentile(power.sum(axis=1), 95) / _BANDS
    return np.asarray(np.log(power + floor + 1e-12), np.float64)


def _filters() -> F64:
    """Triangles, evenly spread on the mel scale: (513 x 16)."""
    low, high = (float(2595 * np.log10(1 + hertz / 700)) for hertz in (_LOWEST, _HIGHEST))
    hertz = 700 * (10 ** (np.linspace(low, high, _BANDS + 2) / 2595) - 1)
    at = np.arange(_SIZE // 2 + 1)[:, None] * SAMPLE_RATE / _SIZE
    up = (at - hertz[:-2]) / np.diff(hertz)[:-1]
    down = (hertz[2:] - at) / np.diff(hertz)[1:]
    return np.asarray(np.maximum(0, np.minimum(up, down)), np.float64)
