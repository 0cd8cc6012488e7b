# SPDX-License-Identifier: Apache-2.0
"""SyncTalk_2D with "ave" audio: a U-Net on squares of 320 pixels, or others, and 16 vectors."""

from __future__ import annotations

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.families.base import AUDIO_ENCODER, CropRule, Family, Shape
from lipsync_fast.geometry import Rect
from lipsync_fast.untrusted.limits import BLOCK, Need

REGION_BORDER = 4
"""Pixels between the crop's edge and the generated region, on each side (crop = region + 8)."""
HALO = 2
"""Pixels that the last stage's two 3 x 3 convolutions need beyond a window."""
LEVELS = ("x1", "x2", "x3", "x4", "x5", "x6")
AUDIO_SHAPE = (32, 16, 16)
VECTORS = 16


def level_shapes(width: int, region: int, window: Rect | None = None) -> dict[str, Shape]:
    """Channels, height and width of the image half's outputs x1 .. x6.

    With a ``window``, x1 holds only what the last stage needs to make it.
    """
    channels = (1, 1, 2, 4, 8, 16)
    shapes: dict[str, Shape] = {
        name: (width * c, region >> i, region >> i)
        for i, (name, c) in enumerate(zip(LEVELS, channels, strict=True))
    }
    if window is not None:
        need = window.grown(HALO, region)
        shapes["x1"] = (width, need.height, need.width)
    return shapes


class Synctalk2d(Family):
    """See the module."""

    name = "synctalk2d"
    crop = CropRule(border=REGION_BORDER, linear=False, half=False)
    audio = AudioWindow(before=8, after=8)
    audio_shape = AUDIO_SHAPE
    fused = True

    def check(self, width: int, region: int, window: Rect | None, audio: AudioWindow) -> None:
        """Any even width, squares of 224 pixels or more, any 16 vectors."""
        if region < 224 or region % 32:
            raise ValueError(f"region {region}: expected a multiple of 32, 224 to 1024")
        if audio.vectors != VECTORS or audio.before < 0 or not audio.padded:
            raise ValueError(f"audio {audio.before}, {audio.after}: expected 16 vectors together")

    def levels(self, width: int, region: int, window: Rect | None) -> dict[str, Shape]:
        """x1 .. x6: ``level_shapes``."""
        return level_shapes(width, region, window)

    def need(self, network: str, width: int, region: int) -> Need:
        """The image half is widest in its second stage, the decoder in its last one."""
        if network == "audio_encoder":
            return AUDIO_ENCODER
        pixels = region * region
        if network == "image":
            widest = max(2 * width, BLOCK) * pixels
            return Need(
                tensor=widest,
                live=5 * widest,
                multiplications=(11 * width * width + 100 * width + 500) * pixels,
                weights=3_000 * width * width + 3_000 * width + 1_000,
            )
        widest = max(4 * width, BLOCK) * pixels
        return Need(
            tensor=widest,
            live=4 * widest,
            multiplications=(30 * width * width + 200 * width + 500) * pixels,
            weights=12_000 * width * width + 5_000 * width + 1_000,
        )

    def peak(self, width: int, region: int) -> int:
        """Three tensors as wide as the last stage is."""
        return 3 * 4 * width * region * region


SYNCTALK2D = Synctalk2d()
