# SPDX-License-Identifier: Apache-2.0
"""The exported U-Net with a window makes that part of the whole region."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from lipsync_fast.families.synctalk2d import LEVELS, SYNCTALK2D, level_shapes
from lipsync_fast.geometry import Rect
from lipsync_fast.models.export import export_unet
from lipsync_fast.models.unet import UNet

WIDTH, REGION = 4, 224


def run(model: bytes, feed: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(3)
    return UNet(WIDTH, REGION).eval()


@pytest.mark.parametrize(
    "window",
    [Rect(40, 60, 101, 77), Rect(0, 1, 224, 100), Rect(213, 223, 11, 1), Rect(0, 0, 224, 224)],
)
def test_window_is_part_of_the_whole(unet: UNet, window: Rect) -> None:
    rng = np.random.RandomState(5)
    image = rng.uniform(0, 1, (2, 6, REGION, REGION)).astype(np.float32)
    audio = rng.uniform(-1, 1, (2, 32, 16, 16)).astype(np.float32)
    with torch.no_grad():
        whole = unet(torch.from_numpy(image), torch.from_numpy(audio)).numpy()
    first, second = export_unet(unet, window=window)
    levels = run(first, {"image": image})
    assert {n: v.shape[1:] for n, v in levels.items()} == level_shapes(WIDTH, REGION, window)
    assert set(levels) == set(LEVELS)
    part = run(second, {**levels, "audio": audio})["region"]
    assert part.shape[1:] == SYNCTALK2D.output(REGION, window)
    columns = slice(window.x, window.x + window.width)
    rows = slice(window.y, window.y + window.height)
    assert np.abs(part - whole[:, :, rows, columns]).max() < 1e-5


@pytest.mark.parametrize("window", [Rect(-1, 0, 5, 5), Rect(0, 220, 5, 5), Rect(0, 0, 225, 1)])
def test_window_outside_is_refused(unet: UNet, window: Rect) -> None:
    with pytest.raises(ValueError, match="within the region"):
        export_unet(unet, window=window)
