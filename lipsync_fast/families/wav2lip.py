# SPDX-License-Identifier: Apache-2.0
"""wav2lip: an encoder and a decoder on faces of 96 pixels, or 256, and one vector a frame.

The face encoder halves the face down to one pixel; the decoder begins with the audio vector as one
pixel and doubles it, and after each stage the encoder's output of the same size is appended. The
published networks have the base width 16.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipsync_fast.audio.windows import FEATURE_SIZE, AudioWindow
from lipsync_fast.families.base import AUDIO_ENCODER, CropRule, Family, Shape
from lipsync_fast.geometry import Rect
from lipsync_fast.untrusted.limits import BLOCK, Need

PUBLISHED_WIDTH = 16


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks that work on maps of one size: one that changes it, then residual ones.

    Attributes:
        channels: that it yields, in base widths.
        side: of its map in pixels.
        residual: blocks after the first one.
    """

    channels: int
    side: int
    residual: int


ENCODERS: dict[int, tuple[Stage, ...]] = {
    96: (
        Stage(1, 96, 0),
        Stage(2, 48, 2),
        Stage(4, 24, 3),
        Stage(8, 12, 2),
        Stage(16, 6, 2),
        Stage(32, 3, 1),
        Stage(32, 1, 0),
    ),
    256: (
        Stage(1, 256, 0),
        Stage(2, 128, 2),
        Stage(4, 64, 3),
        Stage(8, 32, 2),
        Stage(16, 16, 2),
        Stage(32, 8, 1),
        Stage(32, 4, 1),
        Stage(32, 1, 0),
    ),
}
"""By the face's side. The first stage is a 7 x 7 convolution; the last one a convolution over all
of the map and a 1 x 1 one; those between halve it."""
DECODERS: dict[int, tuple[Stage, ...]] = {
    96: (
        Stage(32, 1, 0),
        Stage(32, 3, 1),
        Stage(32, 6, 2),
        Stage(24, 12, 2),
        Stage(16, 24, 2),
        Stage(8, 48, 2),
        Stage(4, 96, 2),
    ),
    256: (
        Stage(32, 1, 0),
        Stage(32, 4, 1),
        Stage(32, 8, 1),
        Stage(32, 16, 2),
        Stage(24, 32, 2),
        Stage(16, 64, 2),
        Stage(8, 128, 2),
        Stage(4, 256, 2),
    ),
}
"""The first stage is a 1 x 1 convolution, the second one spreads one pixel over the smallest map,
the others double it."""


class Wav2lip(Family):
    """See the module."""

    name = "wav2lip"
    crop = CropRule(border=0, linear=True, half=True)
    audio = AudioWindow(before=-1, after=2, edge="nearest")
    audio_shape = (FEATURE_SIZE, 1, 1)

    def check(self, width: int, region: int, window: Rect | None, audio: AudioWindow) -> None:
        """Two sizes, no window, one vector."""
        if region not in ENCODERS:
            sides = " or ".join(str(side) for side in ENCODERS)
            raise ValueError(f"region {region}: a wav2lip network makes {sides} pixels")
        if window is not None:
            raise ValueError("window: a wav2lip network makes the whole face")
        if audio != self.audio:
            raise ValueError(f"audio {audio.before}, {audio.after}: expected -1, 2, edge nearest")

    def levels(self, width: int, region: int, window: Rect | None) -> dict[str, Shape]:
        """x1 .. x7, or x8: what each stage of the face encoder yields."""
        return {
            f"x{k}": (width * stage.channels, stage.side, stage.side)
            for k, stage in enumerate(ENCODERS[region], 1)
        }

    def need(self, network: str, width: int, region: int) -> Need:
        """The decoder is widest in its last stage; its spreading borrows as much again."""
        if network == "audio_encoder":
            return AUDIO_ENCODER
        pixels = region * region
        if network == "image":
            widest = max(width, BLOCK) * pixels
            return Need(
                tensor=widest,
                live=4 * widest,
                multiplications=(140 * width * width + 500) * pixels,
                weights=60_000 * width * width + 60_000,
            )
        widest = max(10 * width, 2 * BLOCK) * pixels
        return Need(
            tensor=widest,
            live=3 * widest,
            multiplications=(2_000 * width * width + 500) * pixels,
            weights=145_000 * width * width + 120_000,
        )

    def peak(self, width: int, region: int) -> int:
        """The last stage's input and output with what is appended to them."""
        return (10 + 3 * 5) * width * region * region


WAV2LIP = Wav2lip()
