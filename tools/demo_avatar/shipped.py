# SPDX-License-Identifier: Apache-2.0
"""What a package's own audio encoder and audio branch hear, told by a linear layer.

The U-Net draws from the branch's output; a linear layer on its mean, fitted to the speech that the
package was trained on, says what there is in it for the mouth.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch
from lips import UNIT, LipNet
from listening import padded
from numpy.typing import NDArray
from torch import Tensor
from tune_hearing import networks, ridge, with_one

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "speech"))
from data import feature_windows, mel
from voices import Voice

F32 = NDArray[np.float32]
FITTED = 4000
"""Frames that the linear layer is fitted to."""
BATCH = 128


class Shipped:
    """Encoder and branch of WORK (restore.py), float32; tells controls and both gaps."""

    lookahead_ms = 212.5

    def __init__(self, work: pathlib.Path, lips: LipNet, known: list[Voice]) -> None:
        self._encoder, unet = networks(work)
        self._branch = unet.audio_model.eval()
        some, wanted, frames = [], [], 0
        train = [v for v in known if v.split == "train"]
        for k in np.random.RandomState(8).permutation(len(train)):
            controls = train[k].frames()
            some.append(self._means(train[k].sound))
            wanted.append(np.column_stack([controls, lips.pixels(controls) / UNIT]))
            frames += len(controls)
            if frames >= FITTED:
                break
        self._head = ridge(with_one(torch.cat(some)), torch.from_numpy(np.concatenate(wanted)))

    @torch.no_grad()
    def _means(self, pcm: F32) -> Tensor:
        """The mean of the branch's output for each frame, frames x 256."""
        frames = -(-len(pcm) // 640)
        windows = torch.from_numpy(feature_windows(mel(pcm)))[:, None]
        layout = torch.channels_last
        features = torch.cat(
            [self._encoder(w.contiguous(memory_format=layout)) for w in windows.split(BATCH)]
        )
        rows = padded(features.numpy(), frames)
        blocks = torch.from_numpy(np.stack([rows[i : i + 16] for i in range(frames)]))
        blocks = blocks.reshape(-1, 32, 16, 16)
        heard = [self._branch(b.contiguous(memory_format=layout)) for b in blocks.split(BATCH)]
        return torch.cat(heard).float().mean((2, 3))

    def tell(self, pcm: F32) -> F32:
        """Controls of every frame and both gaps in UNIT, frames x 10."""
        out: F32 = (with_one(self._means(pcm)) @ self._head).clamp(min=0).numpy()
        return out
