# SPDX-License-Identifier: Apache-2.0
"""Rectangles in pictures, as the protocol has them."""

from __future__ import annotations

from lipsync_fast_client.geometry import EMPTY, Corners, Rect

__all__ = ["EMPTY", "Corners", "Rect"]
