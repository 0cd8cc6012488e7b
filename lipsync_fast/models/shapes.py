# SPDX-License-Identifier: Apache-2.0
"""Shapes of the U-Net's two graphs, as exporter and backends agree on them (numbers only)."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("x1", "x2", "x3", "x4", "x5", "x6")
AUDIO_SHAPE = (32, 16, 16)
HALO = 2
"""Pixels that the last stage's two 3 x 3 convolutions need beyond the window."""


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


def level_shapes(width: int, region: int, window: Box | None = None) -> dict[str, tuple[int, ...]]:
    """Channels, height and width of the image half's outputs x1 .. x6.

    With a ``window``, x1 holds only what the last stage needs to make it.
    """
    channels = (1, 1, 2, 4, 8, 16)
    shapes: dict[str, tuple[int, ...]] = {
        name: (width * c, region >> i, region >> i)
        for i, (name, c) in enumerate(zip(LEVELS, channels, strict=True))
    }
    if window is not None:
        need = window.grown(HALO, region)
        shapes["x1"] = (width, need.height, need.width)
    return shapes


def output_shape(region: int, window: Box | None = None) -> tuple[int, ...]:
    """Channels, height and width of the decoder's output."""
    return (3, window.height, window.width) if window else (3, region, region)
