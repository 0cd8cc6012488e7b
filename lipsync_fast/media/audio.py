# SPDX-License-Identifier: Apache-2.0
"""The sound of any file that PyAV reads, as 16 kHz mono float32, streaming, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from lipsync_fast.audio.pcm import Resampler, to_float, to_mono
from lipsync_fast.closing import Closing
from lipsync_fast.errors import MediaError

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
    """An open media file's first audio stream; iterate once for its 16 kHz mono pieces.

    A file that ends early or is damaged on the way yields what decodes; ``warnings`` says so.

    Raises:
        MediaError: missing, unreadable, not media, or without sound (0 samples too).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self._container = open_container(self.path)
        self._stream = self._container.streams.audio[0]

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._container.close()

    @property
    def seconds(self) -> float | None:
        """Length as the file's header claims it, or None; only good for a progress bar."""
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration is not None:
            return float(Fraction(self._container.duration, 1_000_000))
        return None

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
                    self._warn("damaged sound was left out")
        except av.error.FFmpegError as error:
            if not got:
                raise MediaError(
                    f"{self.path}: no sound can be decoded ({error.strerror})"
                ) from None
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
        missing = wav_bytes_missing(self.path)
        if missing and not self.warnings:
            self._warn(f"ends early: {missing} bytes of the WAV file are missing")
        claimed = self.seconds
        if claimed is not None and decoded / rate < claimed - 0.5 and not self.warnings:
            self._warn(
                f"ends early: {decoded / rate:.2f} of {claimed:.2f} seconds could be decoded"
            )


def open_container(path: Path) -> av.container.InputContainer:
    """Open a media file that has sound.

    Raises:
        MediaError: with the path and the reason.
    """
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if path.is_dir():
        raise MediaError(f"{path}: is a folder, not a sound file")
    try:
        container = av.open(str(path), "r", metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: cannot be read as sound or video ({error.strerror})") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be read ({error})") from None
    if not container.streams.audio:
        container.close()
        raise MediaError(f"{path}: holds no sound")
    return container


def wav_bytes_missing(path: Path) -> int:
    """By how much a WAV file is shorter than its header says; 0 for any other file.

    FFmpeg takes the shorter length without a word. Streams leave the header's length at 0 or at
    its largest value; neither says anything.
    """
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return 0
    announced = int.from_bytes(head[4:8], "little")
    if announced == 0 or announced >= 0x7FFF_F000:
        return 0
    return max(0, announced + 8 - path.stat().st_size)
