# SPDX-License-Identifier: Apache-2.0
"""Rectangles in pictures, as the protocol has them."""

from __future__ import annotations

from lipsync_fast_client.geometry import EMPTY, Corners, Rect

__all__ = ["EMPTY", "Corners", "Rect", "even_size"]


def even_size(size: tuple[int, int]) -> tuple[int, int]:
    """A size with even sides, which video has: those of an odd one have one more."""
    width, height = size
    return width + width % 2, height + height % 2
