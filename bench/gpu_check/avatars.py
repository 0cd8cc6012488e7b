# SPDX-License-Identifier: Apache-2.0
"""The avatars that others measure with: the reference's network twice, and the golden one.

``golden`` has the golden weights and frames, for parity; ``reference`` random weights and frames of
1280 x 720. The demo avatar is in the package. A dry run has a tiny one.
"""

from __future__ import annotations

from pathlib import Path

from gpu_check.context import Context

FRAMES = 40


def main(context: Context) -> None:
    """Write them."""
    from golden import synctalk_dataset

    from lipsync_fast.avatars.importer import import_synctalk
    from lipsync_fast.benchmark.reference import reference_networks, write_reference_avatar

    context.avatars.mkdir()
    if context.dry:
        _tiny(context.avatars / "tiny")
    networks = reference_networks()
    for name in ("reference", "reference-2"):
        path = write_reference_avatar(context.avatars / name, networks, frames=FRAMES)
        context.found.check(f"avatar {name}", path.is_dir(), f"{FRAMES} frames")
    dataset = synctalk_dataset(context.work / "golden")
    import_synctalk(dataset, context.work / "imported").rename(context.avatars / "golden")
    context.found.check("avatar golden", (context.avatars / "golden").is_dir())


def _tiny(dest: Path) -> None:
    """One that a host can run in the device's place."""
    import numpy as np
    import torch

    from lipsync_fast.avatars.manifest import Manifest
    from lipsync_fast.avatars.writer import AvatarWriter
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.export import export_audio_encoder, export_unet
    from lipsync_fast.models.unet import UNet

    torch.manual_seed(1)
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
    rng = np.random.default_rng()
    with AvatarWriter(dest, manifest) as writer:
        for _ in range(5):
            writer.add_frame(rng.integers(0, 255, (192, 160, 3), np.uint8), (32, 40, 128, 136))
        writer.add_model("audio_encoder", export_audio_encoder(AudioEncoder().eval()))
        image, decoder = export_unet(UNet(width=2, region=224).eval())
        writer.add_model("image", image)
        writer.add_model("decoder", decoder)
        writer.finish()
