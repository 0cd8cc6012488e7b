# SPDX-License-Identifier: Apache-2.0
"""A picture of pictures: evenly spaced frames with captions, to look at an avatar or a result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.geometry import Rect

TILE_WIDTH = 320


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    rects: Sequence[Rect] = (),
    columns: int = 4,
) -> Image.Image:
    """Tiles of 320 pixels' width with captions and, where given, rectangles outlined.

    Args:
        pictures: each H x W x 3 uint8 RGB, all of one size, at least one.
        captions: one for each picture.
        rects: in each picture's pixels; empty for none.
        columns: tiles in a row.
    """
    height, width = pictures[0].shape[:2]
    scale = TILE_WIDTH / width
    tile_height = max(1, round(height * scale))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * TILE_WIDTH, rows * (tile_height + 18)), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = i % columns * TILE_WIDTH, i // columns * (tile_height + 18)
        tile = Image.fromarray(picture).resize((TILE_WIDTH, tile_height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y))
        if rects:
            x1, y1, x2, y2 = (v * scale for v in rects[i].corners)
            draw.rectangle((x + x1, y + y1, x + x2 - 1, y + y2 - 1), outline=(80, 220, 120))
        draw.text((x + 6, y + tile_height + 3), caption, fill=(220, 220, 220))
    return sheet


def avatar_sheet(package: AvatarPackage, count: int = 12) -> Image.Image:
    """Evenly spaced frames of an avatar with their face rectangles."""
    total = package.manifest.frame_count
    chosen = sorted({int(i) for i in np.linspace(0, total - 1, min(count, total))})
    return contact_sheet(
        [package.picture(i) for i in chosen],
        [f"frame {i}" for i in chosen],
        [package.rect(i) for i in chosen],
    )
