# SPDX-License-Identifier: Apache-2.0
"""The smallest avatar that is whole; bench/gpu_check's dry run has it, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_tiny_avatar(dest: Path) -> Path:
    """A whole avatar package, quick to run: random weights, width 2, region 224, 5 frames."""
    import torch

    from lipsync_fast.avatars.manifest import Manifest
    from lipsync_fast.avatars.writer import AvatarWriter
    from lipsync_fast.geometry import Rect
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
    with AvatarWriter(dest, manifest) as writer:
        for index in range(5):
            picture = np.full((192, 160, 3), 60 + 30 * index, np.uint8)
            picture[20:150, 20:140] = rng.integers(0, 255, (130, 120, 3), np.uint8) // 4 + 90
            writer.add_frame(picture, Rect(32, 40, 96, 96))
        writer.add_model("audio_encoder", export_audio_encoder(AudioEncoder().eval()))
        image, decoder = export_unet(UNet(width=2, region=224).eval())
        writer.add_model("image", image)
        writer.add_model("decoder", decoder)
        return writer.finish()
