# SPDX-License-Identifier: Apache-2.0
"""HDR video, brought to the pictures that everything else here is made of.

HLG and PQ say with the same numbers other light than BT.709 does: shown as they are, faces come out
pale and dark. FFmpeg's filters zscale or libplacebo make light of them, tone-map what is brighter
than white, and give BT.709; a build without either cannot, and such a video is refused. Diffuse
white is 203 cd/m² (BT.2408).
"""

from __future__ import annotations

from typing import Any

import av
import av.error
import av.filter

from lipsync_fast.errors import MediaError

PQ, HLG = 16, 18
NAMES = {PQ: "PQ (HDR10)", HLG: "HLG"}
"""FFmpeg's numbers of transfer characteristics whose pictures need tone mapping."""
_ZSCALE_NAMES = {PQ: "smpte2084", HLG: "arib-std-b67"}
_FULL = 2
CONVERT = (
    "ffmpeg -i IN -vf zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,"
    "tonemap=mobius:desat=0,zscale=t=bt709:m=bt709:r=tv,format=yuv420p OUT.mp4"
)


def tone_mapping_filter() -> str | None:
    """The filter that this build of FFmpeg tone-maps with, if it has one."""
    found = av.filter.filters_available
    if "zscale" in found and "tonemap" in found:
        return "zscale"
    return "libplacebo" if "libplacebo" in found else None


def check_tone_mapping(transfer: int, path: object) -> None:
    """Refuse a video that needs tone mapping where there is none.

    Raises:
        MediaError: says what to do.
    """
    if transfer in NAMES and tone_mapping_filter() is None:
        raise MediaError(
            f"{path}: is HDR video ({NAMES[transfer]}), which the FFmpeg of this installation"
            " (package av) cannot tone-map: it has neither the filter zscale nor libplacebo;"
            f" convert the video first, with an FFmpeg that has: {CONVERT}"
        )


class ToneMapper:
    """Frames of one video, tone-mapped to full-range RGB.

    Args:
        frame: the first one; all others are like it.

    Raises:
        MediaError: the filter cannot be set up or run.
    """

    def __init__(self, frame: av.VideoFrame, path: object) -> None:
        self._path = path
        try:
            self._graph: Any = av.filter.Graph()
            source = self._graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base,
            )
            last = source
            for name, how in _chain(frame):
                node = self._graph.add(name, how)
                last.link_to(node)
                last = node
            sink = self._graph.add("buffersink")
            last.link_to(sink)
            self._graph.configure()
        except (av.error.FFmpegError, ValueError) as error:
            raise self._failed(error) from None

    def mapped(self, frame: av.VideoFrame) -> av.VideoFrame:
        """One frame as rgb24."""
        try:
            self._graph.push(frame)
            made: av.VideoFrame = self._graph.pull()
        except (av.error.FFmpegError, ValueError) as error:
            raise self._failed(error) from None
        return made

    def _failed(self, error: Exception) -> MediaError:
        return MediaError(
            f"{self._path}: cannot be tone-mapped ({error}); convert it first: {CONVERT}"
        )


def _chain(frame: av.VideoFrame) -> list[tuple[str, str]]:
    transfer = _ZSCALE_NAMES[int(frame.color_trc)]
    full = int(frame.color_range) == _FULL
    if tone_mapping_filter() == "libplacebo":
        out = "colorspace=gbr:color_primaries=bt709:color_trc=bt709:range=pc:format=gbrp"
        return [("libplacebo", out), ("format", "rgb24")]
    given = f"tin={transfer}:pin=bt2020:min=bt2020nc:rin={'full' if full else 'limited'}"
    return [
        ("zscale", f"{given}:t=linear:npl=203"),
        ("format", "gbrpf32le"),
        ("zscale", "p=bt709"),
        ("tonemap", "mobius:desat=0"),
        ("zscale", "t=bt709:m=gbr:r=full"),
        ("format", "gbrp"),
        ("format", "rgb24"),
    ]
