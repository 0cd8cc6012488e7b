# SPDX-License-Identifier: Apache-2.0
"""Frames and their sound as an MP4: H.264 and AAC, fast start, in step to the sample.

The AAC encoder begins with 1024 samples of priming. FFmpeg's encoder numbers them from -1024 and
its MP4 muxer turns that into an edit list, so that a player starts with the recording's sample 0;
a test decodes the file again and finds a lag of 0 samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lipsync_fast.errors import OutputError
from lipsync_fast.media.colours import tag, to_yuv
from lipsync_fast.media.files import media_url
from lipsync_fast.output.base import (
    FrameLike,
    check_file_target,
    output_error,
    partial_name,
    publish_file,
)
from lipsync_fast.output.sound import SoundTrack
from lipsync_fast.provenance import mp4_uuid_box
from lipsync_fast.timing import FPS

VIDEO_ENCODERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("libx264", {"preset": "veryfast", "crf": "18"}),
    ("libopenh264", {"rc_mode": "quality", "qmin": "16", "qmax": "26"}),
    ("mpeg4", {"qmin": "2", "qmax": "4"}),
)
"""The first that this build of FFmpeg has is used."""
_FAILURES = (OSError, av.FFmpegError)


class Mp4Writer:
    """Writes to a hidden file beside the target, which gets its name on ``commit``.

    Memory is bounded: the sound is read as the pictures come, and FFmpeg interleaves the two.
    """

    def __init__(self, target: Path, sound: Path, packet: bytes, *, force: bool = False) -> None:
        """Open the recording and the hidden file.

        Args:
            target: the video's final name.
            sound: the recording; its first audio stream goes into the video.
            packet: the XMP packet.
            force: replace an existing file.

        Raises:
            OutputError: the target cannot be taken.
            MediaError: the recording cannot be read.
        """
        check_file_target(target, force)
        self.warnings: list[str] = []
        self._path = target
        self._packet = packet
        self._force = force
        self._sound = SoundTrack(sound)
        self._blocks: Iterator[NDArray[np.float32]] = self._sound.blocks()
        self._partial = partial_name(target)
        self._samples = 0
        self._video: VideoStream | None = None
        self._audio: AudioStream | None = None
        self._closed = False
        self._reformatter = VideoReformatter()
        try:
            self._partial.touch(exist_ok=False)  # av reports a refused name less clearly
            self._container: OutputContainer = av.open(
                media_url(self._partial),
                "w",
                format="mp4",
                options={
                    "movflags": "+faststart",
                    # Times in the edit lists are exact: 25 divides every rate that AAC has.
                    "movie_timescale": str(self._sound.rate),
                },
            )
        except _FAILURES as error:
            self._sound.close()
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)
            raise output_error(target, error) from None

    @property
    def target(self) -> str:
        """The video's final name."""
        return str(self._path)

    def write(self, frame: FrameLike) -> None:
        """Add the next frame, and the sound that belongs to it.

        Raises:
            OutputError: it cannot be written.
        """
        image = _even(frame.image)
        try:
            if self._video is None:
                self._start(image.shape[1], image.shape[0])
            assert self._video is not None
            self._write_sound(until=Fraction(frame.index + 1, FPS))
            picture = to_yuv(image, self._reformatter)
            picture.pts = frame.index
            picture.time_base = Fraction(1, FPS)
            self._container.mux(self._video.encode(picture))
        except _FAILURES as error:
            raise output_error(self._path, error) from None

    def commit(self) -> None:
        """Write what is left, move the index to the front, and give the file its final name.

        Raises:
            OutputError: no frame came, it cannot be finished, or the name was taken meanwhile.
        """
        if self._video is None or self._audio is None:
            raise OutputError(f"cannot write {self._path}: there are no frames")
        try:
            self._write_sound(until=None)
            self._container.mux(self._video.encode(None))
            self._container.mux(self._audio.encode(None))
            self._closed = True
            self._container.close()
            self._add_provenance()
        except _FAILURES as error:
            raise output_error(self._path, error) from None
        publish_file(self._partial, self._path, self._force)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            # Before closing: closing would otherwise write the index and move all the data once.
            self._partial.unlink(missing_ok=True)
        if not self._closed:
            self._closed = True
            with contextlib.suppress(*_FAILURES):
                self._container.close()
        self._sound.close()

    def _start(self, width: int, height: int) -> None:
        name, options = video_encoder()
        if name == "mpeg4":
            self.warnings.append(
                "this build of FFmpeg has no H.264 encoder: the video is MPEG-4 part 2, "
                "which not every player shows"
            )
        video = self._container.add_stream(name, rate=FPS, options=dict(options))
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = Fraction(1, FPS)
        tag(video.codec_context)
        audio = self._container.add_stream("aac", rate=self._sound.rate)
        assert isinstance(audio, AudioStream)
        audio.layout = self._sound.layout
        audio.bit_rate = min(96_000, 4 * self._sound.rate) * self._sound.channels
        self._video, self._audio = video, audio

    def _write_sound(self, until: Fraction | None) -> None:
        """Encode sound up to ``until`` seconds, or all that is left."""
        assert self._audio is not None
        rate = self._sound.rate
        while until is None or self._samples < until * rate:
            block = next(self._blocks, None)
            if block is None:
                return
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(block), format="fltp", layout=self._sound.layout
            )
            frame.sample_rate = rate
            frame.pts = self._samples
            frame.time_base = Fraction(1, rate)
            self._samples += block.shape[1]
            self._container.mux(self._audio.encode(frame))

    def _add_provenance(self) -> None:
        """Check that the file is whole (FFmpeg can miss a full disk), and append the XMP box."""
        boxes = top_level_boxes(self._partial)
        names = [name for name, _ in boxes]
        if "moov" not in names or "mdat" not in names:
            raise OutputError(f"cannot write {self._path}: the video came out incomplete")
        with self._partial.open("ab") as file:
            file.write(mp4_uuid_box(self._packet))


def top_level_boxes(path: Path) -> list[tuple[str, int]]:
    """Type and size in bytes of an MP4's outermost boxes, in the file's order.

    Raises:
        OutputError: they do not add up to the file's size.
    """
    total = path.stat().st_size
    boxes: list[tuple[str, int]] = []
    at = 0
    with path.open("rb") as file:
        while at < total:
            file.seek(at)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size < 8 or at + size > total:
                raise OutputError(f"{path} is not a whole MP4 file ({total} bytes)")
            boxes.append((head[4:8].decode("latin-1"), size))
            at += size
    return boxes


def video_encoder() -> tuple[str, dict[str, str]]:
    """Name and options of the video encoder that is used.

    Raises:
        OutputError: FFmpeg was built without any.
    """
    for name, options in VIDEO_ENCODERS:
        with contextlib.suppress(av.codec.codec.UnknownCodecError, ValueError):
            av.codec.Codec(name, "w")
            return name, options
    raise OutputError("this build of FFmpeg (package av) has no encoder for MP4 video")


def _even(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``image`` with its last row or column repeated where its size is odd (4:2:0 needs even)."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return image
