# SPDX-License-Identifier: Apache-2.0
"""From a family's checkpoints to its networks as a package has them (extra ``train``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lipsync_fast.families import Models
from lipsync_fast.models.checkpoints import load_audio_encoder, load_unet, load_wav2lip
from lipsync_fast.models.export import export_audio_encoder, export_unet
from lipsync_fast.models.export_wav2lip import export_wav2lip
from lipsync_fast.models.onnx_weights import load_unet_onnx


def _synctalk2d(checkpoint: Path, audio_encoder: Path) -> Models:
    """A U-Net's ``.pth`` or ``.onnx``, and the encoder's ``.pth``."""
    load = load_unet_onnx if checkpoint.suffix.lower() == ".onnx" else load_unet
    unet = load(checkpoint)
    encoder = export_audio_encoder(load_audio_encoder(audio_encoder))
    return Models(unet.width, unet.region, encoder, *export_unet(unet))


def _wav2lip(checkpoint: Path, audio_encoder: Path) -> Models:
    """A whole network's ``.pth``; the audio encoder may be that of another one."""
    network = load_wav2lip(checkpoint)
    encoder = export_audio_encoder(load_audio_encoder(audio_encoder))
    return Models(network.width, network.region, encoder, *export_wav2lip(network))


EXPORTERS: dict[str, Callable[[Path, Path], Models]] = {
    "synctalk2d": _synctalk2d,
    "wav2lip": _wav2lip,
}
"""By the family's name: checkpoint and audio encoder's checkpoint to networks.

Raises:
    CheckpointError: hostile, damaged or of another family.
"""
