# SPDX-License-Identifier: Apache-2.0
"""Between RGB and the numbers in a video: which matrix and range, and without getting darker.

swscale's quick ways cut off what they should round: pictures come out up to 1.4 grey levels darker.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from numpy.typing import NDArray

EXACT = 0x2 | 0x2000 | 0x4000 | 0x4_0000
"""swscale's flags: bilinear, whole chroma in and out, rounding."""


def tag(context: av.VideoCodecContext) -> None:
    """Say in a video which colours it has: BT.709 of limited range, as ``to_yuv`` makes them."""
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    context.color_range = ColorRange.MPEG


def to_yuv(image: NDArray[np.uint8], reformatter: VideoReformatter) -> av.VideoFrame:
    """An RGB picture, H x W x 3 of even sides, as a frame of yuv420p for such a video."""
    shared = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
    return reformatter.reformat(
        shared,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=EXACT,
    )
