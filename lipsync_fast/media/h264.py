# SPDX-License-Identifier: Apache-2.0
"""Pictures as a stream of H.264: access units of Annex B, each decodable as soon as it is there.

Constrained baseline, so that every decoder and every browser takes it; no picture waits for another
one. Pictures are I420 of limited range, by the matrix of BT.601, which JPEGs have; the stream says
so. Each key frame carries the sequence's parameters and how the pictures were made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from lipsync_fast.arrays import U8
from lipsync_fast.geometry import Rect
from lipsync_fast.media.colours import EXACT
from lipsync_fast.provenance import h264_with_xmp
from lipsync_fast.timing import FPS

SOFTWARE, NVIDIA = "libx264", "h264_nvenc"
MOST_BETWEEN = 48
"""Slots from one key frame to the next, at most: just below 2 s."""
AHEAD = 8
"""Pictures that may be looked at ahead of one; more take no fewer bits."""
_local = threading.local()


def i420(image: U8) -> U8:
    """An RGB picture, H x W x 3, as I420 of limited range by BT.601: (1.5 H) x W.

    Of an odd side, the last row or column is there twice.
    """
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()  # not for several threads
    shared = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
    frame = _local.reformatter.reformat(
        shared,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.MPEG,
        interpolation=EXACT,
    )
    planes: U8 = frame.to_ndarray()
    return planes


def pasted(planes: U8, box: Rect, part: U8, into: U8) -> U8:
    """An I420 picture with another one put into it.

    Args:
        box: of ``part`` there; even numbers.
        into: is filled with it, and given back.

    Raises:
        ValueError: it does not lie within the picture, or is of another size.
    """
    x, y, width, height = box.x, box.y, box.width, box.height
    rows, across = planes.shape[0] * 2 // 3, planes.shape[1]
    if part.size * 2 != width * height * 3 or (x | y | width | height) & 1:
        raise ValueError(f"a part of {part.size} bytes for {width} x {height} at {x},{y}")
    if min(x, y, width, height) < 0 or x + width > across or y + height > rows:
        raise ValueError(f"{width} x {height} at {x},{y} leaves the picture {across} x {rows}")
    np.copyto(into, planes)
    whole, flat = into, part.reshape(-1)
    whole[y : y + height, x : x + width] = flat[: width * height].reshape(height, width)
    size, begin = width * height // 4, width * height
    for plane in range(2):
        lies = rows * across + plane * rows * across // 4
        chroma = whole.reshape(-1)[lies : lies + rows * across // 4].reshape(rows // 2, across // 2)
        piece = flat[begin + plane * size : begin + (plane + 1) * size]
        chroma[y // 2 : (y + height) // 2, x // 2 : (x + width) // 2] = piece.reshape(
            height // 2, width // 2
        )
    return whole


@lru_cache(maxsize=2)
def encoder_name(gpu: bool) -> str:
    """The encoder that works here, asked by making a picture; "" where there is none.

    Args:
        gpu: whether one of a GPU is looked for first.
    """
    for name in (NVIDIA, SOFTWARE) if gpu else (SOFTWARE,):
        try:
            encoder = H264Encoder((256, 256), 30, None, b"", name)
            made = encoder.encode(np.full((384, 256), 128, np.uint8))
        except (av.FFmpegError, ValueError, OSError, RuntimeError):
            continue
        if made[1]:
            return name
    return ""


class H264Encoder:
    """One stream. For one thread at a time.

    Args:
        size: width and height of the pictures, even.
        crf: see ``ipc.messages.crf_of``.
        bitrate: bits that a second of it may have; None: what they need.
        xmp: the packet that each key frame carries (``provenance``).
        name: of FFmpeg's encoder.
        ahead: pictures may wait for others that come behind them (``finish``), which takes fewer
            bits: for what is not live.

    Raises:
        av.FFmpegError: it cannot be used here.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crf: int,
        bitrate: int | None,
        xmp: bytes,
        name: str = SOFTWARE,
        ahead: bool = False,
    ) -> None:
        self.size, self._xmp, self._count = size, xmp, 0
        context = av.CodecContext.create(name, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height = size
        context.pix_fmt, context.thread_count = "yuv420p", 1
        context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
        context.gop_size, context.max_b_frames = 10 * MOST_BETWEEN, 0  # who encodes counts slots
        context.colorspace = Colorspace.SMPTE170M
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.IEC61966_2_1
        context.color_range = ColorRange.MPEG
        options = _x264(crf, ahead) if name == SOFTWARE else _nvenc(crf)
        if bitrate is not None:
            options |= {"maxrate": str(bitrate), "bufsize": str(bitrate)}
        context.options = options
        self._context = context

    def encode(self, planes: U8, key: bool = False) -> tuple[bytes, bool]:
        """A picture's access unit, and whether it is a key frame.

        Args:
            planes: I420 of the stream's size.
            key: it is to be one.

        Raises:
            ValueError: planes of another size.
            av.FFmpegError: the encoder has failed.
        """
        (made,) = self._pushed(planes, key)
        return made

    def finish(self, pictures: Iterable[U8]) -> list[bytes]:
        """The access units of all pictures, the first of which is a key frame; ends the stream."""
        made = [unit for planes in pictures for unit, _ in self._pushed(planes, False)]
        return made + [self._unit(packet)[0] for packet in self._context.encode(None)]

    def _pushed(self, planes: U8, key: bool) -> list[tuple[bytes, bool]]:
        width, height = self.size
        if planes.shape != (height * 3 // 2, width):
            raise ValueError(f"planes of shape {planes.shape} for pictures of {width} x {height}")
        frame = _frame(planes)
        frame.pts, frame.time_base = self._count, Fraction(1, FPS)
        frame.pict_type = PictureType.I if key or not self._count else PictureType.NONE
        self._count += 1
        return [self._unit(packet) for packet in self._context.encode(frame)]

    def _unit(self, packet: Any) -> tuple[bytes, bool]:
        data = bytes(packet)
        return (h264_with_xmp(data, self._xmp), True) if packet.is_keyframe else (data, False)


def _frame(planes: U8) -> av.VideoFrame:
    """I420 as a frame, without a copy where PyAV can: it takes heights for multiples of 4."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    if height % 4 == 0:
        return av.VideoFrame.from_numpy_buffer(planes, format="yuv420p")
    frame, flat, at = av.VideoFrame(width, height, "yuv420p"), planes.reshape(-1), 0
    for plane in frame.planes:
        size = plane.height * plane.width
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : plane.height
        ]
        rows[:, : plane.width] = flat[at : at + size].reshape(plane.height, plane.width)
        at += size
    return frame


def _x264(crf: int, ahead: bool) -> dict[str, str]:
    more = f"bframes=0:ref=1:scenecut=0:keyint={10 * MOST_BETWEEN}:sliced-threads=0:threads=1"
    options = {"preset": "veryfast" if ahead else "ultrafast", "crf": str(crf)}
    options |= {"profile": "baseline", "forced-idr": "1"}
    if ahead:
        more += f":rc-lookahead={AHEAD}:mbtree=1"
    else:
        options["tune"] = "zerolatency"
    return options | {"x264-params": more}


def _nvenc(crf: int) -> dict[str, str]:
    """Of a GPU's encoder. Its pictures come one by one, too."""
    return {
        "preset": "p1",
        "tune": "ull",
        "profile": "baseline",
        "rc": "vbr",
        "cq": str(crf),
        "delay": "0",
        "zerolatency": "1",
        "forced-idr": "1",
    }
