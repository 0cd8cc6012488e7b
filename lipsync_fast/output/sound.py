# SPDX-License-Identifier: Apache-2.0
"""The sound of a video: a recording decoded again, at a rate and layout that AAC can hold.

Sample 0 of what comes out is sample 0 of the recording; lengths and positions are kept by
counting samples, never by the file's own time stamps, as the features are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from lipsync_fast.media.audio import MediaSource

AAC_FRAME = 1024
AAC_RATES = (
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000,
)  # fmt: skip
FALLBACK_RATE = 48_000


def aac_rate(rate: int) -> int:
    """``rate`` where AAC has it, else 48 kHz."""
    return rate if rate in AAC_RATES else FALLBACK_RATE


class SoundTrack:
    """A recording as float32 planes for an AAC encoder, read as it is asked for.

    Samples that are not finite become silence, and those beyond [-1, 1] are clipped: a player
    would do the same, and an encoder refuses the first.
    """

    def __init__(self, path: Path) -> None:
        """Open the recording.

        Raises:
            MediaError: it cannot be opened, or holds no sound.
        """
        self._source = MediaSource(path)
        frames = self._source.frames()
        try:
            first = next(frames)  # a header can be wrong about rate and layout; a frame is not
        except BaseException:
            self._source.close()
            raise
        self._frames = chain([first], frames)
        self.source_rate: int = first.sample_rate
        """Samples a second in the recording."""
        self.rate = aac_rate(self.source_rate)
        """Samples a second of what comes out."""
        self.channels = min(2, max(1, first.layout.nb_channels))
        """1 or 2; more are mixed down to 2."""

    @property
    def layout(self) -> str:
        """FFmpeg's name of the channel layout."""
        return "mono" if self.channels == 1 else "stereo"

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All samples as ``channels`` x 1024 float32 (the last block may be shorter)."""
        held: list[NDArray[np.float32]] = []
        count = 0
        for piece in self._pieces():
            held.append(piece)
            count += piece.shape[1]
            if count >= AAC_FRAME:
                joined = np.concatenate(held, axis=1)
                whole = count - count % AAC_FRAME
                for start in range(0, whole, AAC_FRAME):
                    yield joined[:, start : start + AAC_FRAME]
                held, count = [joined[:, whole:]], count - whole
        if count:
            yield np.concatenate(held, axis=1)

    def close(self) -> None:
        """Close the recording."""
        self._source.close()

    def _pieces(self) -> Iterator[NDArray[np.float32]]:
        resampler: AudioResampler | None = None
        kind: tuple[str, str, int] | None = None
        for frame in self._frames:
            clean = _without_nan(frame)
            clean.pts = None  # counted, not believed
            if kind != (clean.format.name, clean.layout.name, clean.sample_rate):
                kind = (clean.format.name, clean.layout.name, clean.sample_rate)
                yield from _resampled(resampler, None)
                resampler = AudioResampler(format="fltp", layout=self.layout, rate=self.rate)
            yield from _resampled(resampler, clean)
        yield from _resampled(resampler, None)


def _resampled(
    resampler: AudioResampler | None, frame: av.AudioFrame | None
) -> Iterator[NDArray[np.float32]]:
    """What ``resampler`` has ready after ``frame`` (None: the end), within [-1, 1]."""
    if resampler is not None:
        for out in resampler.resample(frame):
            yield np.clip(out.to_ndarray().astype(np.float32, copy=False), -1.0, 1.0)


def _without_nan(frame: av.AudioFrame) -> av.AudioFrame:
    """``frame``, or a copy with silence for NaN and infinity, before any filter spreads them."""
    if not frame.format.name.startswith(("flt", "dbl")):
        return frame
    samples = frame.to_ndarray()
    if np.isfinite(samples).all():
        return frame
    mended = np.where(np.isfinite(samples), samples, samples.dtype.type(0))
    clean = av.AudioFrame.from_ndarray(mended, format=frame.format.name, layout=frame.layout.name)
    clean.sample_rate = frame.sample_rate
    return clean
