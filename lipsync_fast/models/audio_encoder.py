# SPDX-License-Identifier: Apache-2.0
"""The "ave" audio encoder: one mel window to one 512-vector (torch, extra ``train``).

The same network as wav2lip's ``audio_encoder``; state-dict names begin with ``audio_encoder.``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

FEATURE_SIZE = 512


class ConvSpec(NamedTuple):
    """One block of the encoder: conv + bias, batch norm, (+ input), ReLU."""

    inputs: int
    outputs: int
    kernel: int
    stride: tuple[int, int]
    padding: int
    residual: bool


SPECS: tuple[ConvSpec, ...] = (
    ConvSpec(1, 32, 3, (1, 1), 1, False),
    ConvSpec(32, 32, 3, (1, 1), 1, True),
    ConvSpec(32, 32, 3, (1, 1), 1, True),
    ConvSpec(32, 64, 3, (3, 1), 1, False),
    ConvSpec(64, 64, 3, (1, 1), 1, True),
    ConvSpec(64, 64, 3, (1, 1), 1, True),
    ConvSpec(64, 128, 3, (3, 3), 1, False),
    ConvSpec(128, 128, 3, (1, 1), 1, True),
    ConvSpec(128, 128, 3, (1, 1), 1, True),
    ConvSpec(128, 256, 3, (3, 2), 1, False),
    ConvSpec(256, 256, 3, (1, 1), 1, True),
    ConvSpec(256, 512, 3, (1, 1), 0, False),
    ConvSpec(512, 512, 1, (1, 1), 0, False),
)


class ConvBlock(nn.Module):
    """Convolution with bias, batch norm, optional sum with the input, ReLU."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(spec.inputs, spec.outputs, spec.kernel, spec.stride, spec.padding),
            nn.BatchNorm2d(spec.outputs),
        )
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        """``B x C x H x W`` to ``B x C' x H' x W'``."""
        y: Tensor = self.conv_block(x)
        return torch.relu(y + x if self.residual else y)


class AudioEncoder(nn.Module):
    """Mel windows ``B x 1 x 80 x 16`` to audio features ``B x 512``, both float32."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = nn.Sequential(*(ConvBlock(spec) for spec in SPECS))

    def forward(self, x: Tensor) -> Tensor:
        """``B x 1 x 80 x 16`` to ``B x 512``."""
        y: Tensor = self.audio_encoder(x)
        return y.flatten(1)
