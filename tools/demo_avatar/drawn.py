# SPDX-License-Identifier: Apache-2.0
"""The gap between the lips that a U-Net draws, told from its audio branch's output alone.

Not quite what a linear layer tells from that output: small openings are drawn larger, the largest
smaller. ``Drawn`` measures it in pictures (mouth_measure.py) and fits a small network to it.
"""

from __future__ import annotations

import copy
import pathlib

import numpy as np
import torch
from geometry import Geometry
from listening import GAP_UNIT
from mouth_measure import Poses
from normless import WINDOW_H, WINDOW_W, decode_window
from numpy.typing import NDArray
from precision import autocast
from samples import BORDER, image_input
from torch import Tensor, nn

from lipsync_fast.models.unet import UNet

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
TOP, LEFT = 40, 58
"""The window of the region that is drawn: the lips, wherever the head is."""
SHOWN = (0, 25, 50, 75)
"""Frames of the idle loop that the mouths are drawn on."""
BATCH, STEPS, RATE = 16, 1200, 2e-3
REMEMBERED = 6
"""Former calls of ``fit`` that still count."""
DEAD = 0.1
"""Slope below a closed mouth, where nothing is seen to change."""


class Drawn:
    """Draws, measures, and tells. ``unet`` has no norms; its audio branch is not used."""

    def __init__(self, work: pathlib.Path, unet: UNet) -> None:
        self.net = copy.deepcopy(unet).eval().requires_grad_(False)
        self.net.audio_model = nn.Identity()
        self.poses = Poses(work / "loop.npz", Geometry(work))
        with np.load(work / "loop.npz") as z:
            self.frames: U8 = z["frames"][list(SHOWN)]
        squares = [self.poses.square(f, k) for f, k in zip(self.frames, SHOWN, strict=True)]
        with torch.no_grad(), autocast():
            images = torch.from_numpy(np.stack([image_input(s) for s in squares]))
            self.levels = self.net.encode_image(images)
        self._known: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def measure(self, outputs: Tensor) -> F32:
        """Gaps in GAP_UNIT, N, that the branch's outputs (N x 256 x 8 x 8) are drawn with."""
        gaps = []
        for k, some in enumerate(outputs.split(BATCH)):
            number = k % len(SHOWN)
            levels = tuple(
                x[number : number + 1].expand(len(some), -1, -1, -1) for x in self.levels
            )
            with autocast():
                made, _ = decode_window(self.net, levels, some, TOP, LEFT)
            pictures = (made.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            frame, pose = self.frames[number].copy(), SHOWN[number]
            x, y = (int(v) + BORDER for v in self.poses.rects[pose][:2])
            place = np.s_[y + TOP : y + TOP + WINDOW_H, x + LEFT : x + LEFT + WINDOW_W]
            for picture in pictures:
                frame[place] = picture[..., ::-1]
                gaps.append(self.poses.gap(frame, pose).middle)
        return np.array(gaps, np.float32) / GAP_UNIT

    def fit(self, outputs: Tensor) -> None:
        """Fit what ``tell`` uses to these outputs' gaps and those of former calls.

        Every tenth of these is kept to check it.
        """
        means, gaps = outputs.mean((2, 3)), torch.from_numpy(self.measure(outputs))
        held = torch.arange(len(gaps)) % 10 == 0
        self._known.append((means[~held], gaps[~held]))
        known, wanted = (torch.cat(some) for some in zip(*self._known[-REMEMBERED:], strict=True))
        self._centre, self._spread = known.mean(0), known.std(0).mean()
        torch.manual_seed(7)
        self._fitted = nn.Sequential(nn.Linear(known.shape[1], 24), nn.SiLU(), nn.Linear(24, 1))
        optimiser = torch.optim.AdamW(self._fitted.parameters(), RATE, weight_decay=0.1)
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            some = torch.randint(len(known), (256,))
            loss = ((self._seen(known[some]) - wanted[some]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._fitted.requires_grad_(False)
        told = self.tell(outputs[held]).clamp(min=0)
        r = np.corrcoef(told.numpy(), gaps[held].numpy())[0, 1]
        print(f"the drawn gap is told with r = {r:.3f}", flush=True)

    def _seen(self, means: Tensor) -> Tensor:
        raw = self._fitted((means - self._centre) / self._spread)[:, 0]
        return nn.functional.leaky_relu(raw, DEAD)

    def tell(self, outputs: Tensor) -> Tensor:
        """Gaps in GAP_UNIT, N; a little below 0 for lips pressed together."""
        return self._seen(outputs.mean((2, 3)))
