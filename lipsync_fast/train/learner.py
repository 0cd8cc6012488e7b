# SPDX-License-Identifier: Apache-2.0
"""A network that learns for as long as one likes: its optimiser, and weights that are averaged.

The rate only falls slowly, so weights go to and fro; their average over the last steps is what is
looked at, and packed. Norms are measured anew for it, once however often it is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lipsync_fast.models.normless import reference_state
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.options import Options
from lipsync_fast.train.trainer import descend

WARM = 20
"""Steps over which the rate rises."""
NORM_BATCHES, NORM_STEP = 10, 1 << 40
"""Batches from which the norms of weights that are kept are measured, and their first number."""
YOUNG = 20
"""Steps over which the average forgets at first: it is as old as the training."""


class Learner:
    """See the module.

    Args:
        net: a ``normless.passing_network``, where it learns.
        options: of the training.
        keep: part of the averaged weights that a step leaves.
        show: runs a network that it is given over the batch of a number.
    """

    def __init__(
        self, net: UNet, options: Options, keep: float, show: Callable[[UNet, int], object]
    ) -> None:
        self.net, self._options, self._keep, self._show = net, options, keep, show
        self._device = torch.device(options.device)
        self._average = {k: v.clone() for k, v in net.state_dict().items()}
        self._optimiser = torch.optim.AdamW(
            net.parameters(), options.rate, betas=(0.9, 0.98), weight_decay=1e-3
        )
        self._scaler = torch.amp.GradScaler(
            options.device, enabled=options.precision == "fp16" and options.device == "cuda"
        )
        self._kept: dict[str, Tensor] | None = None

    def restore(self, tensors: dict[str, Any]) -> None:
        """Take up what ``tensors`` gave."""
        self._kept = None
        self.net.load_state_dict(tensors["net"])
        self._average = {k: v.to(self._device) for k, v in tensors["average"].items()}
        self._optimiser.load_state_dict(tensors["optimiser"])
        self._scaler.load_state_dict(tensors["scaler"])

    def tensors(self) -> dict[str, Any]:
        """All that a step changes."""
        return {
            "net": self.net.state_dict(),
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def rate(self, step: int, settles: float) -> float:
        """The learning rate of a step; after so many it is 0.7 of what it was, and falls on."""
        rate: float = self._options.rate * min(1.0, (step + 1) / WARM) / (1 + step / settles) ** 0.5
        return rate

    def step(self, number: int, loss: Tensor, rate: float) -> float:
        """Learn from a loss; returns it as a number.

        Raises:
            Lost: it is none, or gradients are none; nothing has changed.
        """
        self._kept = None
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        total = descend(loss, self.net.parameters(), self._optimiser, self._scaler)
        self._average_in(number)
        return total

    @torch.no_grad()
    def _average_in(self, number: int) -> None:
        """Draw the averaged weights towards the present ones, faster at the beginning."""
        keep = min(self._keep, (number + 1) / (number + YOUNG))
        for name, value in self.net.state_dict().items():
            if value.is_floating_point():
                self._average[name].lerp_(value, 1 - keep)

    def kept(self) -> dict[str, Tensor]:
        """The averaged weights, their norms measured, in the family's form."""
        if self._kept is None:  # asked for twice after a step: to be looked at, and to be kept
            self._kept = self._measured()
        return self._kept

    @torch.no_grad()
    def _measured(self) -> dict[str, Tensor]:
        net = copy.deepcopy(self.net)
        net.load_state_dict(self._average)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the mean of all that is seen
        for number in range(NORM_BATCHES):
            self._show(net, NORM_STEP + number)
        state = {k: v.cpu() for k, v in net.state_dict().items()}
        return reference_state(state, self._options.width, self._options.region)
