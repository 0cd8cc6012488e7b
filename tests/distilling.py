# SPDX-License-Identifier: Apache-2.0
"""Teachers and students small enough for seconds.

    python tests/distilling.py AVATAR OUT [STEPS]

is the command in a process of its own, with as little to hear and to look at as in the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tiny import write_tiny_avatar

from lipsync_fast.geometry import Rect
from lipsync_fast.train import exam, learner, pace, speech, taught
from lipsync_fast.train.distill import DistillRequest, distill

WINDOW = Rect(40, 60, 160, 140)
LITTLE: list[tuple[Any, str, float]] = [
    (exam, "FRAMES", 2),
    (exam, "SOUNDS", 4),
    (taught, "SEEN_FRAMES", 1),
    (taught, "SEEN_SOUNDS", 2),
    (learner, "NORM_BATCHES", 1),
    (speech, "ENOUGH_S", 1.0),
    (speech, "QUIET_S", 1.0),
    (pace, "ROUNDS", 1),
    (pace, "SECONDS", 0.02),
]
"""Constants of the training, and what they are here."""


def write_teacher(dest: Path) -> Path:
    """An avatar of width 4 at region 256 that makes a window."""
    return write_tiny_avatar(dest, 4, 256, WINDOW)


def wanted(teacher: Path, place: Path, **changes: Any) -> DistillRequest:
    """A student of width 2 at region 224, by six steps."""
    told: dict[str, Any] = {
        "avatar": teacher, "out": place / "student", "width": 2, "region": 224, "steps": 6,
        "batch": 3, "threads": 1, "validate_every": 3, "device": "cpu", "quiet": True,
    }  # fmt: skip
    return DistillRequest(**told | changes)


if __name__ == "__main__":
    for module, name, value in LITTLE:
        setattr(module, name, value)
    steps = int(sys.argv[3])
    distill(wanted(Path(sys.argv[1]), Path(sys.argv[2]), steps=steps, quiet=False))
