# SPDX-License-Identifier: Apache-2.0
"""Versions of one avatar that can be told apart by the height of their frames."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np

from lipsync_fast.avatars.package import MODELS, AvatarPackage
from lipsync_fast.avatars.writer import AvatarWriter, pack
from lipsync_fast.geometry import Rect


def put(tiny: Path, dest: Path, height: int = 192, frames: int = 5) -> Path:
    """Put a version of the tiny avatar at a path ending in .lsa, in one step."""
    folder = dest.parent / f".{dest.stem}-{height}-{frames}"
    if not folder.exists():
        _write(tiny, folder, height, frames)
    made = dest.parent / f".{dest.name}.new"
    pack(folder, made)
    os.replace(made, dest)
    return dest


def _write(tiny: Path, folder: Path, height: int, frames: int) -> None:
    with AvatarPackage.open(tiny) as package:
        manifest = msgspec.structs.replace(
            package.manifest, frame_height=height, frame_count=frames, files={}
        )
        with AvatarWriter(folder, manifest) as writer:
            for index in range(frames):
                picture = np.resize(package.picture(index % 5), (height, 160, 3))
                writer.add_frame(np.ascontiguousarray(picture), Rect(32, 40, 96, 96))
            for name in MODELS:
                writer.add_model(name, bytes(package.model(name)))
            writer.finish()
