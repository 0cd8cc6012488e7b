# SPDX-License-Identifier: Apache-2.0
"""The last step of a training: the best weights as graphs, packed with the prepared frames."""

from __future__ import annotations

import datetime
from pathlib import Path

import torch

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.models.export import export_unet
from lipsync_fast.models.unet import UNet
from lipsync_fast.prepare.folder import PreparedAvatar, pack_prepared
from lipsync_fast.prepare.request import printable
from lipsync_fast.train.options import Options
from lipsync_fast.train.sound import Encoder
from lipsync_fast.train.state import Best
from lipsync_fast.version import __version__


def pack(
    prepared: PreparedAvatar,
    dest: Path,
    weights: dict[str, torch.Tensor],
    options: Options,
    encoder: Encoder,
    provenance: str,
    *,
    overwrite: bool,
) -> Path:
    """Write the avatar package.

    Args:
        prepared: its frames.
        dest: a folder, or a file if its name ends in ``.lsa``.
        weights: of the U-Net.
        options: of the training.
        encoder: the audio encoder that the U-Net was trained with.
        provenance: see ``provenance_of``.
        overwrite: replace a package that is there.

    Raises:
        OutputError: ``dest`` cannot be written.
    """
    net = UNet(options.width, options.region)
    net.load_state_dict(weights)
    image, decoder = export_unet(net.eval())
    audio: AudioWindow = options.audio
    return pack_prepared(
        prepared,
        dest,
        {"audio_encoder": encoder.onnx, "image": image, "decoder": decoder},
        width=options.width,
        region=options.region,
        audio=audio,
        overwrite=overwrite,
        provenance=provenance,
    )


def provenance_of(
    prepared: PreparedAvatar,
    options: Options,
    encoder: Encoder,
    best: Best,
    seconds: float,
    trained: int,
    held: int,
) -> str:
    """What was trained, on which data, for how long, with which seed and versions."""
    o, source = options, prepared.manifest.source
    with_losses = ["pixel"]
    if o.perceptual:
        with_losses.append("perceptual (VGG19)")
    if o.sync_loss > 0:
        with_losses.append(f"sync (x {o.sync_loss:g}, judge trained alongside)")
    begun = f"; begun with weights of SHA-256 {o.start}" if o.start else ""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return printable(
        f"U-Net of width {o.width} at region {o.region} trained by lipsync-fast {__version__}"
        f" (torch {torch.__version__}, {o.device}, {o.precision}), ended on {day}, on {trained}"
        f" frames of {source.name} (SHA-256 {source.sha256}), {held} held out; {o.steps} steps of"
        f" {o.batch} frames in {seconds / 60:.1f} min, learning rate {o.rate:g}, seed {o.seed},"
        f" losses: {', '.join(with_losses)}{begun}; weights of step {best.step}, held-out"
        f" difference {best.loss:.2f} grey levels, {best.mouth:.2f} at the mouth; audio encoder:"
        f" {encoder.source}"
    )
