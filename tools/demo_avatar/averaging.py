# SPDX-License-Identifier: Apache-2.0
"""A network's weights, averaged over its last steps of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def average_in(average: dict[str, Tensor], net: nn.Module, keep: float) -> None:
    """Move the average towards a network's weights now.

    Args:
        average: as ``state_dict`` gives it; changed in place. Counts of steps stay as they are.
        keep: the part of the average that stays, from 0 to 1.
    """
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - keep)
