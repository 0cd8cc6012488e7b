# SPDX-License-Identifier: Apache-2.0
"""The golden data: inputs, weights by recipe, and what the reference networks made of them.

Read from ../shared/golden where it is, else from the small copy in tests/data. Weights are not
stored: they follow from their names (see tests/data/README.md).
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
FULL, SMALL = ROOT.parent / "shared" / "golden", ROOT / "tests" / "data"


def load(name: str) -> dict[str, NDArray[np.generic]]:
    """All arrays of one golden file, the full one if it is there."""
    for folder in (FULL, SMALL):
        if (folder / f"{name}.npz").is_file():
            with np.load(folder / f"{name}.npz") as file:
                return dict(file)
    pytest.skip(f"{name}.npz is neither in {FULL} nor in {SMALL}")


@cache
def weights(network: str) -> dict[str, NDArray[np.generic]]:
    """A network's state dict by the recipe."""
    shapes = json.loads((SMALL / "state_dict_shapes.json").read_text())[network]
    return {name: recipe(name, tuple(shape)) for name, shape in shapes.items()}


def recipe(name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """One tensor of a state dict."""
    if name.endswith("num_batches_tracked"):
        return np.array(0, np.int64)
    seed = zlib.crc32(name.encode())
    z = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return np.exp(np.float32(0.2) * z)
    if name.endswith(("running_mean", "bias")):
        return np.float32(0.1) * z
    if len(shape) == 1:
        return 1 + np.float32(0.1) * z
    return z * np.float32(np.sqrt(1 / np.prod(shape[1:])))


def synctalk_dataset(folder: Path, name: str = "golden") -> Path:
    """Lay out the golden frames and weights as SyncTalk_2D does; returns the data set's folder."""
    import torch
    from PIL import Image

    frames = load("frames")
    dataset = folder / "dataset" / name
    checkpoints = folder / "checkpoint" / name
    for path in (dataset / "full_body_img", dataset / "landmarks", checkpoints):
        path.mkdir(parents=True)
    for i, (picture, points) in enumerate(zip(frames["frames"], frames["landmarks"], strict=True)):
        Image.fromarray(picture[..., ::-1]).save(dataset / "full_body_img" / f"{i}.png")
        lines = "\n".join(f"{x} {y}" for x, y in points)
        (dataset / "landmarks" / f"{i}.lms").write_text(lines + "\n")
    for network, file in (
        ("unet_328_ave", "99.pth"),
        ("audio_encoder", "audio_visual_encoder.pth"),
    ):
        state = {n: torch.from_numpy(np.asarray(v)) for n, v in weights(network).items()}
        torch.save(state, checkpoints / file)
    return dataset
