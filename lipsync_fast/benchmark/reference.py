# SPDX-License-Identifier: Apache-2.0
"""An avatar with the reference's network at full size, to measure with (needs the extra ``train``).

Its weights are random, with a fixed seed: they cost what trained ones cost. Frames and face
rectangles are those of the demo avatar.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.writer import AvatarWriter

if TYPE_CHECKING:
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.unet import UNet

WIDTH, REGION = 32, 320
SEED = 328


@dataclass(frozen=True)
class Networks:
    """The reference's two networks, in evaluation mode."""

    audio_encoder: AudioEncoder
    unet: UNet


def reference_networks(width: int = WIDTH, region: int = REGION) -> Networks:
    """Networks of the reference's size, or of another, with random weights.

    Batch norms get statistics that keep signals in their range, so that sums neither vanish nor
    overflow: denormal numbers would cost more than real ones.
    """
    import torch

    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.unet import UNet

    torch.manual_seed(SEED)
    encoder, unet = AudioEncoder(), UNet(width, region)
    for module in (*encoder.modules(), *unet.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # one pass in training mode sets the running statistics
    with torch.no_grad():
        encoder.train()(torch.randn(16, 1, 80, 16))
        unet.train()(torch.rand(1, 6, region, region), torch.randn(1, 32, 16, 16))
    return Networks(encoder.eval(), unet.eval())


def write_reference_avatar(dest: Path, networks: Networks, frames: int = 40) -> Path:
    """A package with these networks and the first frames of the demo avatar, 1280 x 720.

    Args:
        dest: a file or folder that is not there yet.
        frames: 1 to 100.
    """
    from lipsync_fast.models.export import export_audio_encoder, export_unet

    with AvatarPackage.open(AvatarLibrary().find("demo")) as demo:
        m = demo.manifest
        manifest = Manifest(
            name="reference",
            width=networks.unet.width,
            region=networks.unet.region,
            frame_width=m.frame_width,
            frame_height=m.frame_height,
            frame_count=frames,
            synthetic=True,
            licence=m.licence,
            audio=AudioWindow(),
            jpeg=m.jpeg,
        )
        with AvatarWriter(dest, manifest, keep_pictures=False, keep_regions=False) as writer:
            for index in range(frames):
                writer.add_frame(demo.picture(index), demo.rect(index))
            writer.add_model("audio_encoder", export_audio_encoder(networks.audio_encoder))
            image, decoder = export_unet(networks.unet)
            writer.add_model("image", image)
            writer.add_model("decoder", decoder)
            return writer.finish()
