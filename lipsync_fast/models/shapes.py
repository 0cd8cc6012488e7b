# SPDX-License-Identifier: Apache-2.0
"""Parts of squares, as exporter and backends agree on them (numbers only)."""

from __future__ import annotations

from dataclasses import dataclass

HALO = 2
"""Pixels that the U-Net's last stage's two 3 x 3 convolutions need beyond the window."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a square, in pixels: columns x .. x + width - 1, rows y .. y + height - 1."""

    x: int
    y: int
    width: int
    height: int

    def grown(self, by: int, side: int) -> Box:
        """This box with ``by`` more pixels on each side, where the square has them."""
        x, y = max(0, self.x - by), max(0, self.y - by)
        right, bottom = min(side, self.x + self.width + by), min(side, self.y + self.height + by)
        return Box(x, y, right - x, bottom - y)
