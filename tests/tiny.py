# SPDX-License-Identifier: Apache-2.0
"""Small avatars for tests; the smallest that is whole is in the dry run of bench/gpu_check, too."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import pytest

    from lipsync_fast.avatars.manifest import Manifest
    from lipsync_fast.geometry import Rect


def small_manifest(size: tuple[int, int], frames: int = 1, **more: Any) -> Manifest:
    """What an avatar with the smallest network says of itself.

    Args:
        size: width and height of its frames.
        more: fields that are to be others.
    """
    from lipsync_fast.avatars.manifest import Manifest

    said: dict[str, Any] = {"name": "small", "width": 2, "region": 224}
    said |= {"frame_width": size[0], "frame_height": size[1], "frame_count": frames}
    return Manifest(**said | more)


def write_tiny_avatar(
    dest: Path, width: int = 2, region: int = 224, window: Rect | None = None
) -> Path:
    """A whole avatar package, quick to run: random weights, width 2, region 224, 5 frames.

    One with a window has masks, too: of its last frame the lowest rows stay the original.
    """
    import torch

    from lipsync_fast.avatars.manifest import Window
    from lipsync_fast.avatars.writer import AvatarWriter
    from lipsync_fast.geometry import Rect as Box
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.export import export_audio_encoder, export_unet
    from lipsync_fast.models.unet import UNet

    torch.manual_seed(3)
    made = window and Window(x=window.x, y=window.y, width=window.width, height=window.height)
    manifest = small_manifest(
        (160, 192), 5, name="tiny", synthetic=True, licence="CC0-1.0", width=width, region=region,
        window=made,
    )  # fmt: skip
    mask = np.zeros((96, 96), bool)
    mask[90:] = True
    rng = np.random.default_rng(3)
    with AvatarWriter(dest, manifest) as writer:
        for index in range(5):
            picture = np.full((192, 160, 3), 60 + 30 * index, np.uint8)
            picture[20:150, 20:140] = rng.integers(0, 255, (130, 120, 3), np.uint8) // 4 + 90
            writer.add_frame(picture, Box(32, 40, 96, 96), mask if window and index == 4 else None)
        writer.add_model("audio_encoder", export_audio_encoder(AudioEncoder().eval()))
        image, decoder = export_unet(UNet(width, region).eval(), window=window)
        writer.add_model("image", image)
        writer.add_model("decoder", decoder)
        return writer.finish()


def write_half_demo(dest: Path) -> Path:
    """The demo avatar in half its size, with its own networks: a quarter to encode and to draw."""
    from lipsync_fast.avatars.library import shipped_folder
    from lipsync_fast.avatars.package import MODELS, AvatarPackage
    from lipsync_fast.avatars.writer import AvatarWriter
    from lipsync_fast.geometry import Rect as Box

    with AvatarPackage.open(shipped_folder() / "demo.lsa") as demo:
        width, height = (side // 2 for side in demo.frame_size)
        half = msgspec.structs.replace(demo.manifest, frame_width=width, frame_height=height)
        with AvatarWriter(dest, half, keep_pictures=False, keep_regions=False) as writer:
            for index in range(half.frame_count):
                picture = Image.fromarray(demo.picture(index)).reduce(2)
                face = demo.rect(index)
                half_face = (face.x // 2, face.y // 2, face.width // 2, face.height // 2)
                writer.add_frame(np.asarray(picture), Box(*half_face))
            for name in MODELS:
                writer.add_model(name, demo.network(name))
            return writer.finish()


def for_all(factory: pytest.TempPathFactory) -> Path:
    """A folder that all of pytest's processes share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(
    factory: pytest.TempPathFactory, folder: str, name: str, write: Callable[[Path], object]
) -> Path:
    """What ``write`` makes at ``folder``/``name``, by the first of pytest's processes that asks."""
    base = for_all(factory)
    path = base / folder / name
    path.parent.mkdir(exist_ok=True)
    with open(base / f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():  # it appears in one step
            write(path)
    return path
