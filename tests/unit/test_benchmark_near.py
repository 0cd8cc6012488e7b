# SPDX-License-Identifier: Apache-2.0
"""What the benchmark takes for the same picture, where a GPU may round otherwise."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.benchmark.measure import is_near
from lipsync_fast.benchmark.speech import Expected, shipped_recording

HOW = FrameJpeg(quality=92, subsampling="4:2:0", restart_interval=4)


@pytest.fixture(scope="module")
def frames() -> list[bytes]:
    expected = Expected("demo", shipped_recording(2.0))
    try:
        return [expected.jpeg(number, 30) for number in (19, 20, 21)]
    finally:
        expected.close()


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def test_rounding_is_no_difference(frames: list[bytes]) -> None:
    rng = np.random.default_rng(1)
    image = pixels(frames[1]).astype(np.int16)
    image[200:400, 500:800] += rng.integers(-1, 2, (200, 300, 3))
    again = encode_frame(np.clip(image, 0, 255).astype(np.uint8), HOW)
    assert again != frames[1]
    assert is_near(frames[1], again)


def test_the_next_frame_of_the_same_sound_is_one(frames: list[bytes]) -> None:
    before, now, after = frames
    assert not is_near(now, before)
    assert not is_near(now, after)
    assert is_near(now, now)


def test_a_picture_of_another_size_is_one(frames: list[bytes]) -> None:
    assert not is_near(frames[1], encode_frame(pixels(frames[1])[:704].copy(), HOW))
