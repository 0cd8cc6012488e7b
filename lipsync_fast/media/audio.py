# SPDX-License-Identifier: Apache-2.0
"""The sound of any file that PyAV reads, as 16 kHz mono float32, streaming, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from numpy.typing import NDArray

from lipsync_fast.audio.pcm import Resampler, to_float, to_mono
from lipsync_fast.closing import Closing
from lipsync_fast.errors import MediaError, NoSoundError
from lipsync_fast.media.claims import missing_bytes
from lipsync_fast.media.files import (
    EARLY_S,
    chosen,
    claimed_seconds,
    length_of,
    open_media,
    other_than_first,
)

_CENTRE, _FRONT, _BACK, _LOW = 1.0, 0.7071, 0.5, 0.0
_WEIGHTS = {
    "FC": _CENTRE, "FL": _FRONT, "FR": _FRONT, "FLC": _FRONT, "FRC": _FRONT,
    "BL": _BACK, "BR": _BACK, "SL": _BACK, "SR": _BACK, "BC": _BACK, "LFE": _LOW, "LFE2": _LOW,
}  # fmt: skip


def frame_samples(frame: AudioFrame) -> NDArray[np.float32]:
    """A decoded frame as samples x channels float32, integers scaled to [-1, 1)."""
    raw = frame.to_ndarray()
    channels = len(frame.layout.channels)
    shaped = raw.T if frame.format.is_planar else raw.reshape(-1, channels)
    return to_float(shaped)


def downmix(frame: AudioFrame) -> NDArray[np.float32]:
    """A decoded frame as mono float32.

    Stereo is the mean; of more channels the centre, where speech is, counts most and the bass
    channel not at all (weights as ITU-R BS.775 has them, scaled to a sum of one).
    """
    samples = frame_samples(frame)
    if samples.shape[1] <= 2:
        return to_mono(samples)
    names = [c.name for c in frame.layout.channels]
    weights = np.array([_WEIGHTS.get(n, _BACK) for n in names], np.float32)
    if weights.sum() <= 0:
        return to_mono(samples)
    out: NDArray[np.float32] = samples @ (weights / weights.sum())
    return out


class MediaSource(Closing):
    """An open media file's sound; iterate once for its 16 kHz mono pieces.

    Of several tracks the one is used that FFmpeg would choose (``files.chosen``). A file that is
    cut off or damaged on the way yields what decodes; ``warnings`` says so.

    Raises:
        NoSoundError: it has no track of sound.
        MediaError: missing, unreadable, not media, or without a sample that can be decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self._container = open_container(self.path)
        streams = self._container.streams.audio
        self._stream = chosen(streams, lambda stream: stream.channels)
        for text in other_than_first(streams, self._stream, "sound"):
            self._warn(text)
        self._length: list[float | None] = []
        self._damaged = False

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._container.close()

    @property
    def seconds(self) -> float | None:
        """How much sound there is, or None; only good for a progress bar."""
        if not self._length:
            self._length.append(length_of(self.path, self._container, self._stream))
        return self._length[0]

    @property
    def begins(self) -> Fraction:
        """Time stamp of the first sample, in seconds."""
        stream = self._stream
        if stream.start_time is None or stream.time_base is None:
            return Fraction(0)
        return stream.start_time * stream.time_base

    def frames(self) -> Iterator[AudioFrame]:
        """Decoded frames; stops with a warning where the file turns out damaged."""
        got = False
        try:
            for packet in self._container.demux(self._stream):
                try:
                    for frame in packet.decode():
                        if isinstance(frame, AudioFrame) and frame.samples:
                            got = True
                            yield frame
                except av.error.InvalidDataError:
                    self._damaged = True
                    self._warn("damaged sound was left out")
        except av.error.FFmpegError as error:
            if not got:
                raise MediaError(
                    f"{self.path}: no sound can be decoded ({error.strerror})"
                ) from None
            self._damaged = True
            self._warn(f"the file ends early ({error.strerror}); what decodes is used")
        if not got:
            raise MediaError(f"{self.path}: holds no sound (0 samples decoded)")

    def _warn(self, text: str) -> None:
        line = f"{self.path}: {text}"
        if line not in self.warnings:
            self.warnings.append(line)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        resampler: Resampler | None = None
        decoded, rate = 0, 1
        for frame in self.frames():
            if resampler is None or resampler.rate != frame.sample_rate:
                if resampler is not None:  # the rate changes within the file
                    yield resampler.finish()
                    self.warnings += resampler.report.warnings()
                resampler = Resampler(frame.sample_rate)
            decoded, rate = decoded + frame.samples, frame.sample_rate
            piece = resampler.push(downmix(frame))
            if len(piece):
                yield piece
        if resampler is not None:
            yield resampler.finish()
            self.warnings += [f"{self.path}: {w}" for w in resampler.report.warnings()]
        if not self._damaged:
            self._warn_of_end(decoded / rate)

    def _warn_of_end(self, decoded_s: float) -> None:
        """Where parts of the file are missing, or less decodes than was counted."""
        missing = missing_bytes(self.path)
        if missing:
            self._warn(
                f"the file ends early: {missing} bytes of it are missing; what is there is used"
            )
            return
        claimed = claimed_seconds(self.path, self._container, self._stream)
        if claimed is not None and decoded_s < claimed - EARLY_S:
            self._warn(f"ends early: {decoded_s:.2f} of {claimed:.2f} seconds could be decoded")


def open_container(path: Path) -> InputContainer:
    """Open a media file that has sound.

    Raises:
        NoSoundError: it has none.
        MediaError: with the path and the reason.
    """
    container = open_media(path, "sound or video")
    if not container.streams.audio:
        container.close()
        raise NoSoundError(f"{path}: holds no sound")
    return container
