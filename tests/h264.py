# SPDX-License-Identifier: Apache-2.0
"""Streams of H.264 as a client sees them: taken apart, and shown."""

from __future__ import annotations

import re

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

from lipsync_fast.media.colours import EXACT

U8 = NDArray[np.uint8]
SLICE, KEY_SLICE, SEI, SPS, PPS = 1, 5, 6, 7, 8


def nal_units(unit: bytes) -> list[tuple[int, bytes]]:
    """The kinds and payloads of an access unit's NAL units, without emulation prevention."""
    pieces = re.split(rb"\x00\x00\x01", unit)
    assert pieces[0] in (b"\0", b""), "it begins with a start code"
    cleaned = [piece.rstrip(b"\0") for piece in pieces[1:]]
    return [(p[0] & 31, re.sub(rb"\x00\x00\x03", b"\0\0", p[1:])) for p in cleaned]


def xmp_of(unit: bytes) -> bytes | None:
    """What the SEI message of user data says under XMP's UUID."""
    for kind, payload in nal_units(unit):
        if kind != SEI or payload[0] != 5:
            continue
        at, size = 1, 0
        while payload[at] == 255:
            at, size = at + 1, size + 255
        size, at = size + payload[at], at + 1
        assert payload[at : at + 16].hex() == "be7acfcb97a942e89c71999491e3afac"
        assert payload[at + size] == 0x80
        return payload[at + 16 : at + size]
    return None


class Viewer:
    """A decoder that is strict: what cannot be shown as it was meant is an error."""

    def __init__(self) -> None:
        self._context = av.CodecContext.create("h264", "r")
        self._context.options = {"err_detect": "explode", "flags": "+low_delay"}
        self._context.thread_count = 1
        self._reformatter = VideoReformatter()
        self._begun = False
        self.last: av.VideoFrame | None = None

    def show(self, unit: bytes) -> U8:
        """The picture of an access unit, RGB; without waiting for another one."""
        key = any(kind == KEY_SLICE for kind, _ in nal_units(unit))
        assert key or self._begun, "a stream begins with a key frame"
        self._begun = True
        frames = self._context.decode(av.Packet(unit))
        assert len(frames) == 1, "a picture waits for others"
        self.last = frame = frames[0]
        rgb = self._reformatter.reformat(
            frame, format="rgb24", src_colorspace=Colorspace.ITU601, interpolation=EXACT
        )
        return np.asarray(rgb.to_ndarray())


def psnr(one: U8, other: U8) -> float:
    """Of two pictures, dB."""
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def grey_difference(one: U8, other: U8) -> float:
    """Between the mean grey levels of two pictures, of the channel that differs most."""
    means = [picture.astype(float).mean(axis=(0, 1)) for picture in (one, other)]
    return float(np.abs(means[0] - means[1]).max())
