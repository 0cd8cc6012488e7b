# SPDX-License-Identifier: Apache-2.0
"""The sync loss: a second network that judges whether a mouth and a sound belong together.

SyncTalk_2D trains such a network first, on the same person, and takes minus the logarithm of the
cosine of its two answers. Here it is trained alongside, on real frames alone: a frame's mouth with
its own sound must be told from the same mouth with the sound of another moment. Its answer is the
cosine of two vectors, scaled and shifted by two learned numbers; its loss is the binary cross
entropy. The network that makes pictures is then told minus the logarithm of the probability which
the judge gives its mouth; the judge never learns from made pictures and is held still meanwhile.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipsync_fast.train.losses import mouth

MOUTH_SIDE = 64
SIZE = 128
_GROUPS = 8


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(_GROUPS, outputs), nn.ReLU()
    )


class PairNetwork(nn.Module):
    """Whether a mouth and a sound belong together, as a number before the sigmoid.

    The region's middle (``losses.mouth``), made 64 x 64, goes through four convolutions of stride 2
    (32, 64, 128, 128 channels, group norm, ReLU) and a linear layer to 128 numbers; the audio block
    through three (64, 128, 128) and a linear layer.
    """

    def __init__(self, region: int) -> None:
        super().__init__()
        self._mouth = mouth(region)
        self.look = nn.Sequential(
            _halving(3, 32),
            _halving(32, 64),
            _halving(64, 128),
            _halving(128, 128),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, SIZE),
        )
        self.listen = nn.Sequential(
            _halving(32, 64),
            _halving(64, 128),
            _halving(128, 128),
            nn.Flatten(),
            nn.Linear(128 * 2 * 2, SIZE),
        )
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, region: Tensor, audio: Tensor) -> Tensor:
        """``B x 3 x R x R`` and ``B x 32 x 16 x 16`` to ``B``."""
        top, bottom, left, right = self._mouth
        seen = functional.interpolate(
            region[:, :, top:bottom, left:right],
            (MOUTH_SIDE, MOUTH_SIDE),
            mode="bilinear",
            align_corners=False,
        )
        likeness = functional.cosine_similarity(self.look(seen), self.listen(audio))
        return self.scale * likeness + self.shift


def pair_loss(pairs: PairNetwork, target: Tensor, audio: Tensor, other: Tensor) -> Tensor:
    """What the judge learns from: real mouths with their own sound and with another moment's."""
    own = functional.softplus(-pairs(target, audio))
    strange = functional.softplus(pairs(target, other))
    return (own.mean() + strange.mean()) / 2


def sync_loss(pairs: PairNetwork, made: Tensor, audio: Tensor) -> Tensor:
    """Minus the logarithm of the probability that made mouths and their sounds belong together."""
    return functional.softplus(-pairs(made, audio)).mean()
