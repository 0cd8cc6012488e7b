# SPDX-License-Identifier: Apache-2.0
"""A video's pictures at 25 frames a second, streaming, in bounded memory.

Frame i shows the source frame whose time stamp is nearest to ``start + i / 25`` (the earlier one of
two that are equally near), counted from the first picture. Rotation and mirroring that the file
asks for are applied, and pixels that are not square are made square. Colours are those that the
file's matrix and range say, rounded and not cut off; HDR is tone-mapped (``hdr``). Decoding takes
one thread: many videos are prepared side by side, and what comes out is the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

from lipsync_fast.closing import Closing
from lipsync_fast.errors import MediaError, NotMediaError
from lipsync_fast.media.claims import missing_bytes
from lipsync_fast.media.colours import EXACT
from lipsync_fast.media.files import (
    EARLY_S,
    chosen,
    claimed_seconds,
    length_of,
    open_media,
    other_than_first,
)
from lipsync_fast.media.hdr import NAMES, ToneMapper, check_tone_mapping
from lipsync_fast.timing import FPS

LARGEST_SIDE = 4096
SMALLEST_SIDE = 64
HD_LINES = 720
"""Players take pictures of so many lines for BT.709 where the file does not say."""
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,nut,gif,ivf,h264,hevc,m4v,av1,obu,"
    "yuv4mpegpipe,rm,wtv,dv,amv,apng,mjpeg,vvc,gxf,nsv,swf"
)
"""Containers that are one file. Playlists and lists of pictures are not read: they name others."""
_END_S = Fraction(1, 100)
_LIMITS = {"max_pixels": str(LARGEST_SIDE * LARGEST_SIDE)}
_UNSPECIFIED = 2
_BT2020 = 9
_DOLBY = ("dvh1", "dvhe", "dva1", "dvav", "dav1")
_UPRIGHT = (1, 0, 0, 1)


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame.

    Attributes:
        index: at 25 a second, from 0.
        source: number of the decoded frame that it shows.
        rgb: H x W x 3 uint8, or None for frames that were to be passed over.
    """

    index: int
    source: int
    rgb: NDArray[np.uint8] | None


class Video(Closing):
    """An open video; iterate over ``pictures`` once.

    Raises:
        MediaError: missing, not a video, without pictures, or of a size that is not taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._container = _open(path)
        try:
            self._stream, self.warnings = _stream(self._container, path)
        except BaseException:
            self._container.close()
            raise
        self.codec = self._stream.codec_context.name
        self.rotation = 0
        """Degrees counterclockwise by which pictures were turned to be shown; known once one is."""
        self.begins: Fraction | None = None
        """Time stamp of the first picture in seconds; known once there is one."""
        self._matrix = _UPRIGHT
        self._mapper: ToneMapper | None = None

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._container.close()

    @property
    def rate(self) -> Fraction:
        """Frames a second as the header says it, 25 where it says nothing."""
        return self._stream.average_rate or self._stream.guessed_rate or Fraction(FPS)

    @property
    def seconds(self) -> float | None:
        """How long its pictures are, or None; for progress alone."""
        return length_of(self.path, self._container, self._stream)

    @property
    def bytes_each(self) -> int:
        """Of a picture as H x W x 3, as the header says it."""
        return 3 * self._stream.width * self._stream.height

    def pictures(
        self, *, skip: int = 0, start: Fraction = Fraction(0), limit: int | None = None
    ) -> Iterator[Picture]:
        """The frames, at most ``limit``; the first ``skip`` are counted but not converted.

        Raises:
            MediaError: no picture can be decoded, their size changes on the way, or they are HDR
                and cannot be tone-mapped here.
        """
        self._check_colours()
        index = 0
        for end, number, frame in self._spans(start):
            rgb: NDArray[np.uint8] | None = None
            if end > index + FPS:
                self._warn(f"from {index / FPS:g} s on the picture stands still for over a second")
            while index < end:
                if index == limit:
                    self._warn(f"only its first {index / FPS:g} s are used")
                    return
                if index >= skip and rgb is None:
                    rgb = self._rgb(self._tone_mapped(frame), flags=EXACT)
                yield Picture(index, number, rgb if index >= skip else None)
                index += 1
        if index == 0:
            raise MediaError(
                f"{self.path}: is over before {float(start):g} s, where it should start"
            )

    def every(self) -> Iterator[NDArray[np.uint8]]:
        """All pictures in their order, H x W x 3 uint8 RGB, whatever their times say.

        Colours are those that OpenCV gives: BT.601 wherever the file does not say.

        Raises:
            MediaError: no picture can be decoded, or their size changes on the way.
        """
        for frame in self._decoded():
            yield self._rgb(frame, lines_of_hd=LARGEST_SIDE + 1)

    def _spans(self, start: Fraction) -> Iterator[tuple[int, int, av.VideoFrame]]:
        """Before which 25th of a second after ``start`` each decoded frame is over; its number."""
        held: tuple[Fraction, int, av.VideoFrame] | None = None
        for number, (time, frame) in enumerate(self._timed()):
            if held is not None:
                middle = (held[0] + time) / 2 - start
                yield _after(middle), held[1], held[2]
            held = time, number, frame
        if held is None:
            raise MediaError(f"{self.path}: holds no picture that can be decoded")
        whole = held[0] + self._length(held[2])
        missing = missing_bytes(self.path)
        claimed = claimed_seconds(self.path, self._container, self._stream)
        if missing:
            self._warn(
                f"its pictures end at {float(whole):.2f} s, and {missing} bytes of the file are"
                " missing: cut off?"
            )
        elif claimed is not None and whole < claimed - EARLY_S:
            self._warn(
                f"its pictures end at {float(whole):.2f} s, but the file counts {claimed:.2f} s:"
                " cut off?"
            )
        end = whole - start - _END_S
        yield _after(end), held[1], held[2]

    def _length(self, frame: av.VideoFrame) -> Fraction:
        if frame.duration and frame.time_base is not None:
            return min(Fraction(1), Fraction(frame.duration) * frame.time_base)
        return 1 / self.rate

    def _timed(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Frames with seconds since the first one, always growing."""
        last: Fraction | None = None
        for frame in self._decoded():
            if frame.pts is not None and frame.time_base is not None:
                stamp = frame.pts * frame.time_base
            else:
                stamp = Fraction(0) if last is None else last + 1 / self.rate
            if last is not None and stamp <= last:
                self._warn("frames whose time goes backwards were left out")
                continue
            if self.begins is None:
                self.begins = stamp
                # Of the first frame alone: PyAV keeps frames whose side data were looked at until
                # the garbage collector comes by, and pictures are large.
                self._matrix = _display_matrix(frame)
                a, b = self._matrix[:2]
                self.rotation = round(math.degrees(math.atan2(-b, a))) % 360
            last = stamp
            yield stamp - self.begins, frame

    def _decoded(self) -> Iterator[av.VideoFrame]:
        size: tuple[int, int] | None = None
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except (av.error.InvalidDataError, av.error.ArgumentError):
                    self._warn("damaged pictures were left out")
                    continue
                for frame in frames:
                    if not isinstance(frame, av.VideoFrame):
                        continue
                    if size is not None and (frame.width, frame.height) != size:
                        raise MediaError(
                            f"{self.path}: its pictures change from {size[0]} x {size[1]} to"
                            f" {frame.width} x {frame.height}; convert it to one size first"
                        )
                    size = frame.width, frame.height
                    if max(size) > LARGEST_SIDE:
                        raise MediaError(f"{self.path}: {_wrong_size(*size)}")
                    if frame.is_corrupt:
                        self._warn("damaged pictures were mended by the decoder")
                    yield frame
        except av.error.FFmpegError as error:
            if size is None:
                raise MediaError(
                    f"{self.path}: no picture can be decoded ({error.strerror})"
                ) from None
            self._warn(f"the file ends early ({error.strerror}); what decodes is used")

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _check_colours(self) -> None:
        context = self._stream.codec_context
        check_tone_mapping(int(context.color_trc), self.path)
        if context.codec_tag in _DOLBY and int(context.color_trc) == _UNSPECIFIED:
            raise MediaError(
                f"{self.path}: is Dolby Vision alone, without a picture that others can show;"
                " export it as HDR (HLG) or standard video first"
            )
        if int(context.color_primaries) == _BT2020 and int(context.color_trc) not in NAMES:
            self._warn(
                "its colours have BT.2020's wide range, and come out paler; convert it first"
            )

    def _tone_mapped(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame, or what is shown for one of HDR."""
        if int(frame.color_trc) not in NAMES:
            return frame
        if self._mapper is None:
            check_tone_mapping(int(frame.color_trc), self.path)
            self._mapper = ToneMapper(frame, self.path)
        return self._mapper.mapped(frame)

    def _rgb(
        self, frame: av.VideoFrame, lines_of_hd: int = HD_LINES, flags: int | None = None
    ) -> NDArray[np.uint8]:
        width, height = frame.width, frame.height
        aspect = self._stream.sample_aspect_ratio
        if aspect and aspect != 1:
            wide = max(1, round(width * aspect))
            if wide > LARGEST_SIDE:
                width, height = width, max(1, round(height / aspect))
            else:
                width = wide
        untagged = frame.colorspace == _UNSPECIFIED and frame.height >= lines_of_hd
        made = frame.reformat(
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if untagged else None,
            interpolation=flags,
        )
        turned = _shown(np.asarray(made.to_ndarray(), np.uint8), self._matrix)
        sides = turned.shape[:2]
        if min(sides) < SMALLEST_SIDE or max(sides) > LARGEST_SIDE:
            raise MediaError(f"{self.path}: {_wrong_size(sides[1], sides[0])}")
        return turned


def _after(time: Fraction) -> int:
    """The first 25th of a second behind ``time``."""
    return max(0, time * FPS // 1 + 1)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    stored: Any = frame.side_data
    found = [bytes(data) for data in stored if data.type == Type.DISPLAYMATRIX]
    if not found:
        return _UPRIGHT
    a, b, _, c, d = (int(v) for v in np.frombuffer(found[0], np.int32)[:5])
    return a, b, c, d


def _shown(rgb: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Turned and mirrored as the display matrix says (quarter turns only)."""
    a, b, c, d = matrix
    out = rgb
    if abs(b) + abs(c) > abs(a) + abs(d):
        out = out.transpose(1, 0, 2)
        across, down = c, b
    else:
        across, down = a, d
    if across < 0:
        out = out[:, ::-1]
    if down < 0:
        out = out[::-1]
    return np.ascontiguousarray(out)


def _wrong_size(width: int, height: int) -> str:
    return (
        f"pictures of {width} x {height} are not taken; from {SMALLEST_SIDE} to {LARGEST_SIDE}"
        " pixels each side are"
    )


def _open(path: Path) -> InputContainer:
    # Pictures are decoded to find out about streams: the limits hold for that, too.
    options = {"format_whitelist": FORMATS, **_LIMITS}
    try:
        return open_media(path, "a video", options=options)
    except NotMediaError as error:
        if error.known:
            raise
        raise MediaError(
            f"{error}; not a video, cut off, or of a kind that is not taken (playlists, lists of"
            " pictures)"
        ) from None


def _stream(container: InputContainer, path: Path) -> tuple[av.VideoStream, list[str]]:
    """The video stream that is meant, set up to decode, and warnings; no cover picture."""
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        what = "only sound" if container.streams.audio else "no pictures"
        raise MediaError(f"{path}: holds {what}; a video of the person is needed")
    stream = chosen(streams, lambda one: one.width * one.height)
    context = stream.codec_context
    if context is None or not context.is_decoder:
        raise MediaError(f"{path}: its pictures are of a kind that cannot be decoded here")
    sides = context.width, context.height
    if min(sides) < SMALLEST_SIDE or max(sides) > LARGEST_SIDE:
        raise MediaError(f"{path}: {_wrong_size(*sides)}")
    context.thread_count = 1
    context.options = _LIMITS
    return stream, other_than_first(streams, stream, "video")
