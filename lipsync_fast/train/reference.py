# SPDX-License-Identifier: Apache-2.0
"""Learning as SyncTalk_2D does: another frame of the person, and the target's with a masked face.

order(step) -> frames -> image, target, audio     (data.py)
network(image, audio) -> made
pixel + 0.01 perceptual + weight x sync -> gradients -> Adam
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lipsync_fast.models.unet import UNet
from lipsync_fast.train.data import Batch, Data, Order
from lipsync_fast.train.losses import PERCEPTUAL_WEIGHT, Perceptual, pixel_loss
from lipsync_fast.train.options import Options
from lipsync_fast.train.state import Best
from lipsync_fast.train.sync import PairNetwork, pair_loss, sync_loss
from lipsync_fast.train.trainer import autocast, descend, on_device
from lipsync_fast.train.validate import Look, Validation

PAIR_RATE = 3e-4


@dataclass(frozen=True, slots=True)
class Material:
    """What is learnt from.

    Attributes:
        data: frames and sound.
        order: which frames each step sees.
        validation: the held-out frames.
        start: weights to begin with, or None.
        perceptual: the loss, where its weights are at hand.
    """

    data: Data
    order: Order
    validation: Validation
    start: dict[str, Tensor] | None
    perceptual: Perceptual | None


class ReferenceLesson:
    """See the module, and ``trainer.Lesson``."""

    def __init__(self, options: Options, material: Material) -> None:
        self.options, self._material = options, material
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.net = UNet(options.width, options.region)
        if material.start is not None:
            self.net.load_state_dict(material.start)
        self.pairs = PairNetwork(options.region) if options.sync_loss > 0 else None
        cast(Any, self.net.train()).to(self.device, memory_format=torch.channels_last)
        self._perceptual = material.perceptual
        if self._perceptual is not None:
            self._perceptual.to(self.device)
        self._optimiser = torch.optim.Adam(self.net.parameters(), options.rate)
        self._pair_optimiser: torch.optim.Adam | None = None
        if self.pairs is not None:
            self.pairs.to(self.device)
            self._pair_optimiser = torch.optim.Adam(self.pairs.parameters(), PAIR_RATE)
        self._scaler = torch.amp.GradScaler(
            options.device, enabled=options.precision == "fp16" and options.device == "cuda"
        )

    def restore(self, tensors: dict[str, Any]) -> None:
        """Take up what ``tensors`` gave."""
        self.net.load_state_dict(tensors["net"])
        self._optimiser.load_state_dict(tensors["optimiser"])
        if self.pairs is not None and self._pair_optimiser is not None:
            self.pairs.load_state_dict(tensors["pairs"])
            self._pair_optimiser.load_state_dict(tensors["pair_optimiser"])
        self._scaler.load_state_dict(tensors["scaler"])

    def tensors(self) -> dict[str, Any]:
        """All that a step changes."""
        return {
            "net": self.net.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "pairs": None if self.pairs is None else self.pairs.state_dict(),
            "pair_optimiser": self._pair_optimiser and self._pair_optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def batch(self, step: int) -> Batch:
        """What a step sees."""
        return self._material.data.batch(self._material.order.step(step))

    def kept(self) -> dict[str, Tensor]:
        """The weights as they are packed."""
        return self.net.state_dict()

    def look(self) -> Look:
        """How it does on held-out frames."""
        return self._material.validation.look(self.net, self.device)

    @staticmethod
    def better(found: Best, best: Best) -> bool:
        """Whether a look's weights are to be kept rather than those of the best so far."""
        return found.loss < best.loss

    def learn(self, step: int, batch: Batch) -> dict[str, float]:
        """One step; returns its losses."""
        rate = self.options.rate_at(step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        image, target, audio, other = (on_device(torch.from_numpy(a), self.device) for a in batch)
        judged = self._judge(target, audio, other)
        with autocast(self.options):
            made = self.net(image, audio)
        made = made.float()
        parts = {"pixel": pixel_loss(made, target)}
        loss = parts["pixel"]
        if self._perceptual is not None:
            with autocast(self.options):
                parts["perceptual"] = self._perceptual(made, target)
            loss = loss + PERCEPTUAL_WEIGHT * parts["perceptual"].float()
        if self.pairs is not None:
            parts["sync"] = sync_loss(self.pairs, made, audio)
            loss = loss + self.options.sync_loss * parts["sync"]
        total = descend(loss, self.net.parameters(), self._optimiser, self._scaler)
        line: dict[str, float] = {"loss": total, "rate": rate}
        return line | {name: part.item() for name, part in parts.items()} | judged

    def _judge(self, target: Tensor, audio: Tensor, other: Tensor) -> dict[str, float]:
        """Let the judge of pairs learn from real frames, then hold it still."""
        if self.pairs is None or self._pair_optimiser is None:
            return {}
        self.pairs.requires_grad_(True)
        loss = pair_loss(self.pairs, target, audio, other)
        self._pair_optimiser.zero_grad(set_to_none=True)
        cast(Any, loss).backward()
        self._pair_optimiser.step()
        self.pairs.requires_grad_(False)
        return {"pair": loss.item()}
