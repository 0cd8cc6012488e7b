# SPDX-License-Identifier: Apache-2.0
"""The wav2lip networks at 96 and 256 pixels (torch, extra ``train``), from ``families.wav2lip``.

The face encoder (``encode_image``) knows nothing of the audio, so callers may run it once per
frame. Width 16 at 96 pixels is the published network: 36,298,035 parameters with its audio encoder.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lipsync_fast.families.wav2lip import DECODERS, ENCODERS, PUBLISHED_WIDTH
from lipsync_fast.models.audio_encoder import FEATURE_SIZE, AudioEncoder, ConvBlock, ConvSpec


class SpreadBlock(nn.Module):
    """Transposed convolution with bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, more: int
    ) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, more),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``B x C x H x W`` to ``B x C' x H' x W'``."""
        return torch.relu(self.conv_block(x))


def _block(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> ConvBlock:
    return ConvBlock(ConvSpec(inputs, outputs, kernel, (stride, stride), padding, False))


def _residual(channels: int, count: int) -> list[nn.Module]:
    spec = ConvSpec(channels, channels, 3, (1, 1), 1, True)
    return [ConvBlock(spec) for _ in range(count)]


def _encoder(width: int, region: int) -> nn.ModuleList:
    first, *halving, last = ENCODERS[region]
    stages = [nn.Sequential(_block(6, width * first.channels, 7, 1, 3))]
    inputs = width * first.channels
    for stage in halving:
        outputs = width * stage.channels
        block = _block(inputs, outputs, 3, 2, 1)
        stages.append(nn.Sequential(block, *_residual(outputs, stage.residual)))
        inputs = outputs
    outputs = width * last.channels
    whole = _block(inputs, outputs, halving[-1].side, 1, 0)
    return nn.ModuleList([*stages, nn.Sequential(whole, _block(outputs, outputs, 1, 1, 0))])


def _decoder(width: int, region: int) -> nn.ModuleList:
    stages: list[nn.Module] = []
    appended = list(reversed(ENCODERS[region]))
    first, *_ = DECODERS[region]
    stages.append(nn.Sequential(_block(FEATURE_SIZE, width * first.channels, 1, 1, 0)))
    for k, (before, stage) in enumerate(pairwise(DECODERS[region])):
        inputs = width * (before.channels + appended[k].channels)
        outputs = width * stage.channels
        if before.side == 1:
            block = SpreadBlock(inputs, outputs, stage.side, 1, 0, 0)
        else:
            block = SpreadBlock(inputs, outputs, 3, 2, 1, 1)
        stages.append(nn.Sequential(block, *_residual(outputs, stage.residual)))
    return nn.ModuleList(stages)


class Wav2Lip(nn.Module):
    """Face ``B x 6 x R x R`` and mel windows ``B x 1 x 80 x 16`` to the face ``B x 3 x R x R``.

    Args:
        width: base channels W (published: 16).
        region: side R of the face in pixels, 96 or 256.

    Raises:
        ValueError: another side, or a width below 1.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH, region: int = 96) -> None:
        super().__init__()
        if region not in ENCODERS or width < 1:
            raise ValueError(f"width {width}, region {region}: expected 1 or more, and 96 or 256")
        self.width, self.region = width, region
        self.face_encoder_blocks = _encoder(width, region)
        self.audio_encoder = AudioEncoder().audio_encoder
        self.face_decoder_blocks = _decoder(width, region)
        joined = width * (DECODERS[region][-1].channels + ENCODERS[region][0].channels)
        self.output_block = nn.Sequential(
            _block(joined, 2 * width, 3, 1, 1), nn.Conv2d(2 * width, 3, 1)
        )

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        """The levels x1 .. of the face encoder; they depend on the avatar's frame alone."""
        levels, x = [], image
        for stage in self.face_encoder_blocks:
            x = stage(x)
            levels.append(x)
        return tuple(levels)

    def decode(self, levels: tuple[Tensor, ...], audio: Tensor) -> Tensor:
        """Levels of ``encode_image`` and audio ``B x 512 x 1 x 1`` to ``B x 3 x R x R``."""
        x = audio
        for stage, level in zip(self.face_decoder_blocks, reversed(levels), strict=True):
            x = torch.cat([stage(x), level], dim=1)
        return torch.sigmoid(self.output_block(x))

    def forward(self, image: Tensor, mel: Tensor) -> Tensor:
        """The face as BGR in 0..1, float32."""
        return self.decode(self.encode_image(image), self.audio_encoder(mel))
