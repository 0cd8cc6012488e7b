# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lipsync_fast.client.local import LocalServer


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty folder, so that processes import the installed package, not the checkout."""
    before = Path.cwd()
    # What one test has said is made again for the next one; tests of what is kept say so.
    os.environ["LIPSYNC_FAST_UTTERANCES_DISK_MB"] = "0"
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def tiny_avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole avatar package, quick to run: random weights, width 2, region 224, 5 frames."""
    torch = pytest.importorskip("torch", reason="the extra train is not installed")
    from lipsync_fast.avatars.manifest import Manifest
    from lipsync_fast.avatars.writer import AvatarWriter
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.export import export_audio_encoder, export_unet
    from lipsync_fast.models.unet import UNet

    torch.manual_seed(3)
    manifest = Manifest(
        name="tiny",
        width=2,
        region=224,
        frame_width=160,
        frame_height=192,
        frame_count=5,
        synthetic=True,
        licence="CC0-1.0",
    )
    rng = np.random.default_rng(3)
    dest = tmp_path_factory.mktemp("avatars") / "tiny"
    with AvatarWriter(dest, manifest) as writer:
        for index in range(5):
            picture = np.full((192, 160, 3), 60 + 30 * index, np.uint8)
            picture[20:150, 20:140] = rng.integers(0, 255, (130, 120, 3), np.uint8) // 4 + 90
            writer.add_frame(picture, (32, 40, 128, 136))
        writer.add_model("audio_encoder", export_audio_encoder(AudioEncoder().eval()))
        image, decoder = export_unet(UNet(width=2, region=224).eval())
        writer.add_model("image", image)
        writer.add_model("decoder", decoder)
        return writer.finish()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """``lipsync-fast serve`` with the demo avatar on free ports, shared by a module's tests."""
    with LocalServer({"live": {"speakers": 4}}) as server:
        yield server
