# SPDX-License-Identifier: Apache-2.0
"""How wide the lips are open for any controls: the head's geometry, and a small network for it."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import torch
from controls import to_actions
from geometry import Geometry, inner_lips
from numpy.typing import NDArray
from torch import Tensor, nn

F32 = NDArray[np.float32]
MIDDLE = range(-12, 13, 4)
WIDTH = range(-34, 35, 3)
"""Columns at which ``Lips`` looks, from the picture's middle: the mouth's middle, and most of its
width."""
NEAR = 3.5
UNIT = 8.0
"""Pixels that count as 1 in ``LipNet``."""
KNOWN, HELD, STEPS = 4500, 500, 4000


class Lips:
    """The gaps of the linear model's inner lips, in pixels."""

    def __init__(self, geometry: Geometry) -> None:
        upper, lower = inner_lips(geometry)
        used = np.concatenate([upper, lower])
        self._geometry, self._count = geometry, len(upper)
        self._base, self._deltas = geometry.base[used], geometry.deltas[:, used]

    def __call__(self, controls: F32) -> F32:
        """N x 8 to N x 2: the middle's median gap, and the widest decile over the width."""
        out = np.zeros((len(controls), 2), np.float32)
        for row, result in zip(np.clip(controls, 0, 1), out, strict=True):
            actions = to_actions(row.tolist())
            weights = np.array([actions.get(n, 0.0) for n in self._geometry.actions], np.float32)
            world = self._base + np.tensordot(weights, self._deltas, 1)
            points = self._geometry.project(world)
            middle, width = self._gaps(points, MIDDLE), self._gaps(points, WIDTH)
            result[:] = np.median(middle), np.quantile(width, 0.9)
        return np.maximum(out, 0)

    def _gaps(self, points: F32, columns: range) -> list[float]:
        above, below = points[: self._count], points[self._count :]
        gaps = []
        for x in (self._geometry.layout.width // 2 + aside for aside in columns):
            upper = above[np.abs(above[:, 0] - x) < NEAR, 1]
            lower = below[np.abs(below[:, 0] - x) < NEAR, 1]
            if len(upper) and len(lower):
                gaps.append(float(lower.min() - upper.max()))
        return gaps or [0.0]


class LipNet(nn.Module):
    """``Lips`` as a network, in UNIT pixels; differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, controls: Tensor) -> Tensor:
        """``... x 8`` to ``... x 2``, below 0 nowhere."""
        out: Tensor = torch.relu(self.layers(controls))
        return out

    @torch.no_grad()
    def pixels(self, controls: F32) -> F32:
        """N x 8 to N x 2 in pixels."""
        out: F32 = self(torch.from_numpy(np.clip(controls, 0, 1).astype(np.float32))).numpy() * UNIT
        return out


def fitted(work: pathlib.Path, controls: F32) -> LipNet:
    """The network, fitted to controls (N x 8, some thousands) that speech asks for.

    Kept in WORK/lips.pt: whoever has changed the head or its controls deletes that.
    """
    net, path = LipNet().requires_grad_(False).eval(), work / "lips.pt"
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net
    rng = np.random.RandomState(0)
    known = controls[rng.choice(len(controls), KNOWN + HELD, replace=len(controls) < KNOWN + HELD)]
    some = rng.rand(len(known), 1) < 0.5
    known = np.clip(known + 0.05 * some * rng.randn(*known.shape), 0, 1).astype(np.float32)
    inputs, gaps = torch.from_numpy(known), torch.from_numpy(Lips(Geometry(work))(known) / UNIT)
    net.requires_grad_(True)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / STEPS)
        pick = torch.from_numpy(rng.randint(0, KNOWN, 512))
        raw, wanted = net.layers(inputs[pick]), gaps[pick]
        below = (raw.clamp(max=0) ** 2 * (wanted > 0)).mean()  # keeps ReLU's dead side out of reach
        loss = ((torch.relu(raw) - wanted) ** 2).mean() + 0.1 * below
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.requires_grad_(False)
    error = np.abs(net.pixels(known[KNOWN:]) - gaps[KNOWN:].numpy() * UNIT).mean(axis=0)
    print(f"lip gaps of controls within {error[0]:.3f} and {error[1]:.3f} px", flush=True)
    partial = path.with_suffix(".part")
    torch.save(net.state_dict(), partial)
    os.replace(partial, path)
    return net
