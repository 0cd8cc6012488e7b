# SPDX-License-Identifier: Apache-2.0
"""wav2lip avatars as LiveTalking leaves them, with weights that follow from their names."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from golden import recipe
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.geometry import Rect

Rgb = NDArray[np.uint8]
RECTS = Rect(30, 20, 107, 128), Rect(33, 22, 107, 129), Rect(31, 19, 110, 131)
"""Boxes of three frames of 160 x 176: not square, and each of another size."""


def network(width: int = 16, region: int = 96) -> Any:
    """The torch module, with weights by the recipe of the golden data."""
    import torch

    from lipsync_fast.models.wav2lip import Wav2Lip

    with torch.device("meta"):
        made = Wav2Lip(width, region)
    state = {
        name: torch.from_numpy(np.array(recipe(name, tuple(tensor.shape))))
        for name, tensor in made.state_dict().items()
    }
    made = made.to_empty(device="cpu")
    made.load_state_dict(state)
    return made.eval()


def frames(count: int = len(RECTS)) -> list[Rgb]:
    """Smooth pictures of 176 x 160 that differ."""
    rng = np.random.default_rng(4)
    small = rng.integers(20, 235, (count, 12, 11, 3)).astype(np.uint8)
    return [cv2.resize(one, (160, 176), interpolation=cv2.INTER_CUBIC) for one in small]


def folder(
    path: Path,
    pictures: Sequence[Rgb],
    rects: Sequence[Rect] = RECTS,
    *,
    region: int = 96,
    boxes: Any = None,
    protocol: int = 4,
) -> Path:
    """An avatar's folder, without weights.

    Args:
        boxes: what is pickled; by default the rectangles, in numpy's numbers.
    """
    for name in ("full_imgs", "face_imgs"):
        (path / name).mkdir(parents=True)
    for i, (picture, rect) in enumerate(zip(pictures, rects, strict=True)):
        Image.fromarray(picture).save(path / "full_imgs" / f"{i:08d}.png")
        face = cv2.resize(picture[rect.slices], (region, region))
        Image.fromarray(face).save(path / "face_imgs" / f"{i:08d}.png")
    if boxes is None:
        boxes = [tuple(np.array([r.y, r.bottom, r.x, r.right])) for r in rects]
    (path / "coords.pkl").write_bytes(pickle.dumps(boxes, protocol))
    return path


def save(net: Any, path: Path) -> Path:
    """A checkpoint as it is published: under ``state_dict``, names beginning with ``module.``."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state, "optimizer": None, "global_step": 7}, path)
    return path


def avatar(root: Path, width: int = 2, region: int = 96) -> Path:
    """A package made of such a folder, quick to run; named ``lively``."""
    from lipsync_fast.avatars.importing.build import import_avatar

    path = folder(root / "data" / "avatars" / "lively", frames(), region=region)
    checkpoint = save(network(width, region), root / "models" / "wav2lip.pth")
    return import_avatar(path, root / "packages", checkpoint=checkpoint).path
