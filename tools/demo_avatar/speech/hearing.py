# SPDX-License-Identifier: Apache-2.0
"""The audio encoder with a readout that tells the mouth from its features, and what it tells.

The readout stands for a U-Net's audio branch: it sees the same sixteen features of a frame. It
tells the controls for three look-aheads at once, the last feature that a frame sees being the one
that begins with it (212 ms, as block_starts of a window 14 + 2), one or two before (172, 132 ms).

Trained rolled out first (``rolled``): the encoder runs over all mel rows once, not over windows
that overlap five times; a sixth of the work, but windows' edges are not seen. Then as it is used.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import numpy as np
import torch
from data import feature_windows, mel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from voices import CLASSES

from lipsync_fast.models.audio_encoder import AudioEncoder

F32 = NDArray[np.float32]
SEEN = 16
"""Features of a frame."""
EARLIER = (0, 1, 2)
"""How many features before its own a frame's last one is, for each head."""
LOOKAHEAD_MS = (212.5, 172.5, 132.5)
CLOSE = 1
"""The control that is told as a logit."""
ROLLED_ROWS = 3
"""Mel rows from one rolled feature to the next; windows have 3.2."""
MOST_GAIN = 1.6
FIXED = 6
"""Blocks of an encoder, three fifths of its work, that do not learn again when it goes on."""
CENTRE = 6
"""Row of its window that a feature looks at straight."""


class Readout(nn.Module):
    """Sixteen features to controls and classes, for each look-ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(512, 128)
        self.mix = nn.Conv1d(128, 256, SEEN)
        self.last = nn.Linear(256, len(EARLIER) * (8 + len(CLASSES)))

    def forward(self, features: Tensor) -> Tensor:
        """``B x N x 512`` to ``B x (N - 15) x heads x (8 + classes)``."""
        x = torch.relu(self.narrow(functional.dropout(features, 0.1, self.training)))
        x = torch.relu(self.mix(x.transpose(1, 2))).transpose(1, 2)
        x = self.last(functional.dropout(x, 0.2, self.training))
        out: Tensor = x.unflatten(2, (len(EARLIER), 8 + len(CLASSES)))
        return out


class Hearing(nn.Module):
    """Encoder and readout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.readout = AudioEncoder(), Readout()

    def rolled(self, rows: Tensor) -> Tensor:
        """Mel rows, ``B x 80 x T``, to what ``Readout`` tells every three rows.

        Number k of the features looks at row 3 k.
        """
        x = rows[:, None]
        for number, block in enumerate(self.encoder.audio_encoder):
            conv, norm = block.conv_block
            stride, padding, spread = conv.stride, conv.padding, (1, 1)
            if number == 9:  # halves the time there: take every second later instead
                stride = (stride[0], 1)
            elif number in (10, 11):
                spread, padding = (1, 2), (padding[0], 2)
            y = norm(functional.conv2d(x, conv.weight, conv.bias, stride, padding, spread))
            x = torch.relu(y + x if block.residual else y)
        out: Tensor = self.readout(x[:, :, 0].transpose(1, 2))
        return out

    def features(self, windows: Tensor) -> Tensor:
        """Mel windows, ``N x 80 x 16``, to features, ``N x 512``."""
        out: Tensor = self.encoder(windows[:, None])
        return out

    @torch.no_grad()
    def go_on(self, state: dict[str, Tensor], windows: Tensor) -> list[nn.Parameter]:
        """Take over a trained encoder, whose first FIXED blocks stay as they are.

        The others' norms take the statistics of some mel windows (N x 80 x 16), and weights with
        which they change nothing at first, so that they can learn as those of a new network.

        Returns:
            The encoder's weights that go on learning.
        """
        blocks = self.encoder.audio_encoder
        self.encoder.load_state_dict(state)
        self.encoder.eval()
        x = windows[:, None]
        for block in blocks:
            conv, norm = block.conv_block
            y = conv(x)
            mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
            norm.bias += (
                norm.weight * (mean - norm.running_mean) * (norm.running_var + norm.eps) ** -0.5
            )
            norm.weight *= ((variance + norm.eps) / (norm.running_var + norm.eps)).sqrt()
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            x = block(x)
        blocks[:FIXED].requires_grad_(False)
        blocks[FIXED:].train()
        return list(blocks[FIXED:].parameters())

    def windowed(self, windows: Tensor) -> Tensor:
        """Windows that follow each other, ``B x N x 80 x 16``, to what ``Readout`` tells."""
        features = self.features(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        out: Tensor = self.readout(features)
        return out


def rolled_rows(head: int) -> float:
    """Rows from the one that a rolled frame's last feature looks at to the frame's centre."""
    return 1.6 + 3.2 * EARLIER[head] - (CENTRE - 0.4)  # windows begin at int(3.2 j)


@dataclass(frozen=True)
class Calibration:
    """What is made of the told controls, so that they swing as far as a mouth does.

    The mean of what a sound can stand for is never quite shut and never quite open. Below ``low``
    the lips stay apart, from ``high`` on they are shut; the other controls get the mean and the
    spread that the phones ask for.

    Attributes:
        told_mean, true_mean, gain: One number for each control.
    """

    low: float = 0.25
    high: float = 0.55
    told_mean: tuple[float, ...] = (0.0,) * 8
    true_mean: tuple[float, ...] = (0.0,) * 8
    gain: tuple[float, ...] = (1.0,) * 8

    @classmethod
    def of(cls, told: F32, true: F32, low: float, high: float) -> Calibration:
        """From told and true controls of the same frames, N x 8 each."""
        gain = np.clip(true.std(axis=0) / (told.std(axis=0) + 1e-3), 1.0, MOST_GAIN)
        told_mean, true_mean = (tuple(x.mean(axis=0).tolist()) for x in (told, true))
        return cls(low, high, told_mean, true_mean, tuple(gain.tolist()))

    def __call__(self, told: F32) -> F32:
        """Controls, frames x 8, the closure as a probability, to controls 0..1."""
        mean, centre = np.float32(self.told_mean), np.float32(self.true_mean)
        out = np.clip(centre + (told - mean) * np.float32(self.gain), 0, 1)
        x = np.clip((told[:, CLOSE] - self.low) / (self.high - self.low), 0, 1)
        out[:, CLOSE] = x * x * (3 - 2 * x)
        return out


class Listener:
    """A trained encoder and readout that hear whole recordings, block by block as the product.

    Args:
        path: What train_voices.py has written.
        head: Which look-ahead.
    """

    def __init__(
        self, path: pathlib.Path, head: int = 0, calibration: Calibration | None = None
    ) -> None:
        self._net, self._head = Hearing().eval(), head
        self._net.load_state_dict(torch.load(path, weights_only=True))
        self.calibration = calibration or Calibration()
        self.lookahead_ms = LOOKAHEAD_MS[head]

    @property
    def encoder(self) -> AudioEncoder:
        """The encoder alone."""
        return self._net.encoder

    @torch.no_grad()
    def raw(self, pcm: F32) -> F32:
        """Controls of every frame as they are told, the closure as a probability."""
        frames = -(-len(pcm) // 640)
        features = self._net.features(torch.from_numpy(feature_windows(mel(pcm))))
        x = torch.cat([features[:1], features, features[-1:]])
        after = max(0, frames + 2 - len(x))
        return self.told(torch.cat([x.new_zeros(14, 512), x, x.new_zeros(after, 512)]).numpy())[
            :frames
        ]

    @torch.no_grad()
    def told(self, padded: F32) -> F32:
        """What is told of features with the rows before them that blocks see, 15 more than frames.

        Frame i sees the rows i .. i + 15, or earlier ones, as the look-ahead is shorter.
        """
        x = torch.from_numpy(padded)
        x = torch.cat([x.new_zeros(SEEN, 512), x])[None]
        told = self._net.readout(x)[0, SEEN - EARLIER[self._head] :, self._head, :8].numpy()
        told = told[: len(padded) - SEEN + 1]
        told[:, CLOSE] = 1 / (1 + np.exp(-told[:, CLOSE]))
        out: F32 = np.clip(told, 0, 1)
        return out

    def tell(self, pcm: F32) -> F32:
        """Controls of every frame, frames x 8, 0..1."""
        return self.calibration(self.raw(pcm))
