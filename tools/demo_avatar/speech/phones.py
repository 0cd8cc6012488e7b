# SPDX-License-Identifier: Apache-2.0
"""Timed phones to mouth controls, with coarticulation.

Every phone has a target for the controls that it cares about. Targets blend by dominance: a phone
rules around its middle and fades over its neighbours (rounded lips early, the tongue late), and
controls a phone does not care about pass through it. Lip closure for p, b, m is then laid over
all: complete from its start to its end, at least one frame long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONTROLS = ("open", "close", "pucker", "funnel", "wide", "tuck", "teeth", "tongue")
FPS = 25
STEPS = 100
"""Inner resolution, values a second."""


class Phone(NamedTuple):
    """An ARPAbet phone without stress, and where it lies in the sound, in seconds."""

    name: str
    start: float
    end: float


TARGETS: dict[str, dict[str, float]] = {
    "AA": {"open": 0.84},
    "AE": {"open": 0.76, "wide": 0.30},
    "AH": {"open": 0.46},
    "AO": {"open": 0.64, "funnel": 0.35},
    "EH": {"open": 0.52, "wide": 0.25},
    "ER": {"open": 0.24, "funnel": 0.30},
    "IH": {"open": 0.29, "wide": 0.35},
    "IY": {"open": 0.17, "wide": 0.70, "teeth": 0.15},
    "UH": {"open": 0.22, "funnel": 0.35},
    "UW": {"open": 0.13, "pucker": 0.80},
    "OW2": {"open": 0.18, "pucker": 0.55, "funnel": 0.15},
    "P": {"open": 0.04},
    "B": {"open": 0.05},
    "M": {"open": 0.04},
    "F": {"tuck": 1.0, "open": 0.05},
    "V": {"tuck": 0.9, "open": 0.07},
    "S": {"teeth": 0.85, "open": 0.04},
    "Z": {"teeth": 0.8, "open": 0.05},
    "SH": {"funnel": 0.65, "teeth": 0.35, "open": 0.06},
    "ZH": {"funnel": 0.6, "teeth": 0.3, "open": 0.07},
    "CH": {"funnel": 0.6, "teeth": 0.35, "open": 0.06},
    "JH": {"funnel": 0.6, "teeth": 0.35, "open": 0.07},
    "T": {"teeth": 0.40, "open": 0.11},
    "D": {"teeth": 0.35, "open": 0.13},
    "N": {"teeth": 0.25, "open": 0.15},
    "TH": {"tongue": 0.9, "open": 0.10},
    "DH": {"tongue": 0.75, "open": 0.12},
    "L": {"tongue": 0.45, "open": 0.22},
    "R": {"funnel": 0.35, "pucker": 0.15, "open": 0.15},
    "W": {"pucker": 0.85, "open": 0.08},
    "Y": {"wide": 0.50, "open": 0.13},
    "K": {"open": 0.22},
    "G": {"open": 0.22},
    "NG": {"open": 0.20},
    "HH": {"open": 0.28},
    "SIL": {},
}
"""What each phone asks for, 0..1."""

DIPHTHONGS = {
    "AY": ("AA", "IH"),
    "EY": ("EH", "IY"),
    "OY": ("AO", "IH"),
    "AW": ("AA", "OW2"),
    "OW": ("AO", "OW2"),
}
CLOSURES = frozenset("PBM")
VOWELS = frozenset(("AA", "AE", "AH", "AO", "EH", "ER", "IH", "IY", "UH", "UW", "OW2"))
LIP_SHAPES = ("pucker", "funnel", "wide")
_STRICT = 1.0
_PASSING = 0.06


def split_diphthongs(phones: list[Phone]) -> list[Phone]:
    """Diphthongs as their two halves (the first takes 55%)."""
    out: list[Phone] = []
    for p in phones:
        if p.name in DIPHTHONGS:
            middle = p.start + 0.55 * (p.end - p.start)
            first, second = DIPHTHONGS[p.name]
            out += [Phone(first, p.start, middle), Phone(second, middle, p.end)]
        else:
            out.append(p)
    return out


def _dominance(phone: Phone, control: str) -> float:
    """How firmly a phone insists on its value of a control."""
    target = TARGETS[phone.name]
    if phone.name == "SIL":
        return 0.5
    if control == "open":
        return 1.0 if phone.name in VOWELS else 0.35 if phone.name == "HH" else 0.8
    if control in LIP_SHAPES:
        if control in target:
            return _STRICT
        return 0.45 if phone.name in VOWELS else _PASSING
    return _STRICT if control in target else 0.6


def controls_of(phones: list[Phone], seconds: float) -> NDArray[np.float32]:
    """Controls at the centre of every frame.

    Args:
        phones: in order, without overlaps.
        seconds: length of the sound.

    Returns:
        ceil(25 seconds) x 8 float32 in 0..1.

    Raises:
        KeyError: an unknown phone.
    """
    curve = curves_of(phones, seconds)
    t = (np.arange(len(curve)) + 0.5) / STEPS
    frames = int(np.ceil(seconds * FPS - 1e-9))
    at = (np.arange(frames) + 0.5) / FPS
    picked = np.stack([np.interp(at, t, curve[:, k]) for k in range(len(CONTROLS))], 1)
    return np.clip(picked, 0.0, 1.0).astype(np.float32)


def curves_of(phones: list[Phone], seconds: float) -> NDArray[np.float64]:
    """Controls STEPS times a second, (ceil(100 seconds) + 8) x 8; see ``controls_of``."""
    count = int(np.ceil(seconds * STEPS)) + 8
    t = (np.arange(count) + 0.5) / STEPS
    parts = split_diphthongs(phones)
    total = np.zeros((count, len(CONTROLS)))
    weight = np.full((count, len(CONTROLS)), 1e-4)
    for p in parts:
        middle, half = (p.start + p.end) / 2, (p.end - p.start) / 2
        for k, control in enumerate(CONTROLS):
            rounded = control in ("pucker", "funnel") and control in TARGETS[p.name]
            before = half * 0.75 + (0.055 if rounded else 0.028)
            after = half * 0.75 + 0.030
            width = np.where(t < middle, before, after)
            value = _dominance(p, control) * np.exp(-(((t - middle) / width) ** 2))
            total[:, k] += value * TARGETS[p.name].get(control, 0.0)
            weight[:, k] += value
    curve = total / weight
    curve[:, CONTROLS.index("close")] = _closure(parts, t)
    curve[:, 0] *= 1.0 - 0.75 * curve[:, 1]
    for name in ("teeth", "tongue", "tuck"):
        curve[:, CONTROLS.index(name)] *= 1.0 - curve[:, 1]
    return curve


def _closure(phones: list[Phone], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 while the lips are shut, with ramps of 50 ms; a closure lasts 44 ms or more."""
    shut = np.zeros_like(t)
    for p in phones:
        if p.name not in CLOSURES:
            continue
        middle, half = (p.start + p.end) / 2, max(0.022, min(0.06, (p.end - p.start) / 2))
        outside = np.maximum(0.0, np.abs(t - middle) - half)
        shut = np.maximum(shut, np.clip(1.0 - outside / 0.05, 0.0, 1.0))
    return shut * shut * (3 - 2 * shut)


def voiced_gate(pcm: NDArray[np.float32], frames: int, rate: int = 16_000) -> NDArray[np.float32]:
    """Per frame 0..1: 0 where nothing is heard for a while, so that the mouth rests."""
    step = rate // STEPS
    n = len(pcm) // step
    rms = np.sqrt(np.mean(pcm[: n * step].reshape(n, step) ** 2, axis=1) + 1e-12)
    loud = (rms > 0.012 * np.quantile(rms, 0.95) + 1e-5).astype(np.float64)
    wide = np.array([loud[max(0, i - 9) : i + 10].max() for i in range(n)])
    kernel = np.hanning(13)
    smooth = np.convolve(np.pad(wide, 6, mode="edge"), kernel / kernel.sum(), mode="valid")
    at = (np.arange(frames) + 0.5) / FPS
    return np.interp(at, (np.arange(n) + 0.5) / STEPS, smooth).astype(np.float32)
