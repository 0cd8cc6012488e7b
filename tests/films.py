# SPDX-License-Identifier: Apache-2.0
"""Films of a drawn head with a face mesh, whose mouth opens with the sound: some seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import SAID

from lipsync_fast.geometry import Rect
from lipsync_fast.prepare.loop import Loop
from lipsync_fast.train.mouths import CHIN, EYES, LEFT, LIPS, LOWER, RIGHT, STILL, UPPER
from lipsync_fast.train.staged import Staged, write_prepared

FRAMES = 100
WIDTH, HEIGHT, SIDE = 160, 192, 96
RECT = Rect(32, 40, SIDE, SIDE)
MOUTH = 60, 32
"""Middle of the lips in the crop: column at the middle, so many rows down."""
MOST = 10.0
"""Pixels by which the mouth opens at most."""
REST = 25
"""Frames of silence with a shut mouth, at the beginning."""
LOOP_FIRST, LOOP_COUNT = REST - 3, 12
"""What an avatar of it plays: some silence, and more speech."""


def openings(frames: int = FRAMES, rest: int = REST) -> NDArray[np.float64]:
    """How far the mouth is open in each frame, 0..1, without a period."""
    at = np.arange(frames) / 25
    wave = 0.5 + 0.3 * np.sin(2 * np.pi * 2.3 * at) + 0.3 * np.sin(2 * np.pi * 1.1 * at + 1)
    out = np.clip(wave, 0, 1)
    out[:rest] = 0
    return out


def sway(frames: int = FRAMES) -> NDArray[np.float64]:
    """Where the head is, in pixels to the side of the crop's middle."""
    return 1.5 * np.sin(np.arange(frames) / 9)


def pcm(open_: NDArray[np.float64]) -> NDArray[np.int16]:
    """Noise, the louder the wider the mouth is open; silence where it is shut."""
    rng = np.random.default_rng(6)
    level = np.interp(np.arange(640 * len(open_)) / 640 - 0.5, np.arange(len(open_)), open_)
    return (rng.normal(0, 6000, len(level)) * level**2).clip(-32768, 32767).astype(np.int16)


def meshes(open_: NDArray[np.float64]) -> NDArray[np.float32]:
    """468 points a frame: a head that sways, lips and chin that move as the mouth opens."""
    rng = np.random.default_rng(7)
    base = rng.uniform((20, 10), (76, 40), (468, 2))
    base[list(STILL)] = rng.uniform((15, 0), (81, 45), (len(STILL), 2))
    base[EYES[0]], base[EYES[1]] = (28, 8), (68, 8)
    base[CHIN] = 48, 82
    around = np.linspace(0, 2 * np.pi, len(LIPS), endpoint=False)
    base[list(LIPS)] = np.stack([48 + 16 * np.cos(around), MOUTH[0] + 3 * np.sin(around)], 1)
    base[LEFT], base[RIGHT] = (32, MOUTH[0]), (64, MOUTH[0])
    base[UPPER], base[LOWER] = (48, MOUTH[0]), (48, MOUTH[0] + 0.5)
    out = np.repeat(base[None], len(open_), 0)
    lower = [i for i in LIPS if base[i, 1] > MOUTH[0]]
    out[:, lower, 1] += (MOST * open_)[:, None]
    out[:, CHIN, 1] += MOST / 2 * open_
    out[:, :, 0] += sway(len(open_))[:, None] + RECT.x
    out[:, :, 1] += RECT.y
    return out.astype(np.float32)


def pictures(open_: NDArray[np.float64]) -> Iterator[Staged]:
    """A grey head with marks; its mouth is a dark box."""
    rng = np.random.default_rng(4)
    face = rng.integers(90, 170, (12, 10, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    for wide, moved in zip(open_, sway(len(open_)), strict=True):
        picture = np.roll(face, round(moved), 1)
        top = RECT.y + MOUTH[0]
        left = RECT.x + 34 + round(moved)
        picture[top : top + 1 + round(MOST * wide), left : left + 28] = 20
        yield Staged(picture, RECT)


def film(folder: Path, frames: int = FRAMES, rest: int = REST, **changes: Any) -> Path:
    """A prepared folder of it."""
    told = {"open_": openings(frames, rest)} | changes
    open_ = told["open_"]
    loop = Loop(kind="pingpong", first=LOOP_FIRST, count=LOOP_COUNT)
    return write_prepared(folder, pictures(open_), pcm(open_), SAID, meshes(open_), loop)
