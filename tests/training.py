# SPDX-License-Identifier: Apache-2.0
"""Small prepared folders, and trainings on them that take seconds."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from forking import Command, Forked
from numpy.typing import NDArray

from lipsync_fast.geometry import Rect
from lipsync_fast.train.run import TrainRequest
from lipsync_fast.train.staged import Said, Staged, write_prepared

FRAMES = 50
RECT = Rect(32, 40, 96, 96)
SAID = Said(
    name="small",
    source="small.mp4",
    licence="CC0-1.0",
    provenance="drawn by a test",
    consent="Not needed: nobody is shown.",
    synthetic=True,
)


def sound(frames: int = FRAMES) -> NDArray[np.int16]:
    """Noise that grows louder and softer."""
    rng = np.random.default_rng(5)
    level = 1 + np.sin(np.arange(640 * frames) / 3000)
    return (rng.normal(0, 3000, 640 * frames) * level).clip(-32768, 32767).astype(np.int16)


def drawn(frames: int = FRAMES) -> Iterator[Staged]:
    """A grey face whose dark mouth opens and shuts."""
    rng = np.random.default_rng(4)
    ground = rng.integers(80, 160, (6, 5, 3)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    for i in range(frames):
        picture = ground.copy()
        picture[84 : 92 + round(6 * np.sin(i / 3)), 60:100] = 20
        yield Staged(picture, RECT)


def prepared(folder: Path, frames: int = FRAMES, *, silent: bool = False) -> Path:
    """A prepared folder."""
    return write_prepared(folder, drawn(frames), None if silent else sound(frames), SAID)


def request(folder: Path, encoder: Path, **changes: Any) -> TrainRequest:
    """A training of 12 steps with the smallest network there can be."""
    told: dict[str, Any] = {
        "folder": folder,
        "out": folder.parent / "made.lsa",
        "audio_encoder": str(encoder),
        "steps": 12,
        "batch": 2,
        "device": "cpu",
        "perceptual": "off",
        "width": 2,
        "region": 224,
        "threads": 1,
        "save_every": 3,
        "validate_every": 6,
        "quiet": True,
    }
    return TrainRequest(**told | changes)


def start(commands: Forked, asked: TrainRequest, *more: str) -> Command:
    """Begin the same by the command line."""
    line = ["avatar", "train", str(asked.folder)]
    for name in (
        "out", "audio_encoder", "steps", "batch", "device", "perceptual", "width", "region",
        "threads", "save_every", "validate_every", "sync_loss", "rate", "seed",
    ):  # fmt: skip
        if getattr(asked, name) is not None:
            line += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
    return commands.start(*line, *more, env=os.environ | {"LIPSYNC_FAST_AVATARS": ""})


def lines(file: Path) -> list[dict[str, float]]:
    """A log's whole lines."""
    if not file.exists():
        return []
    *whole, _ = file.read_text().split("\n")
    return [json.loads(line) for line in whole]


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
