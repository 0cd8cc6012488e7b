# SPDX-License-Identifier: Apache-2.0
"""PCM of any rate and layout to 16 kHz mono float32, as a stream in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from lipsync_fast.errors import AudioFormatError
from lipsync_fast.timing import SAMPLE_RATE

MIN_RATE, MAX_RATE = 4_000, 768_000
MAX_CHANNELS = 64
_BLOCK = 1 << 18
_CLIP_SHARE = 0.01


@dataclass
class PcmReport:
    """What was mended on the way; ``warnings`` says it in words."""

    samples: int = 0
    not_finite: int = 0
    clipped: int = 0

    def warnings(self) -> list[str]:
        """One line for each thing that a listener might notice."""
        out = []
        if self.not_finite:
            one = self.not_finite == 1
            out.append(
                f"{self.not_finite} sample{' was' if one else 's were'} not finite and"
                f" {'was' if one else 'were'} treated as silence"
            )
        if self.clipped > _CLIP_SHARE * self.samples:
            out.append(
                f"{self.clipped} samples beyond [-1, 1] were clipped; integers held as floats"
                " must be divided by 32768 first"
            )
        return out


def check_rate(rate: object) -> int:
    """The sample rate as an int.

    Raises:
        AudioFormatError: not a whole number of hertz from 4,000 to 768,000.
    """
    if isinstance(rate, (bool, str)) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise AudioFormatError(f"sample rate {rate!r}: expected samples a second, such as 16000")
    if not MIN_RATE <= float(rate) <= MAX_RATE or float(rate) != int(rate):
        raise AudioFormatError(
            f"sample rate {rate}: expected a whole number from {MIN_RATE} to {MAX_RATE}"
        )
    return int(rate)


def to_float(pcm: NDArray[np.generic]) -> NDArray[np.float32]:
    """Integer or float PCM of any shape to float32, integers scaled to [-1, 1).

    Raises:
        AudioFormatError: another dtype than (u)int8/16/32 or float16/32/64.
    """
    kind, size = pcm.dtype.kind, pcm.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):  # what is too large for a float32 is counted as infinite
            return pcm.astype(np.float32, copy=False)
    if kind == "i" and size <= 2:  # exact in float32, too
        return pcm.astype(np.float32) * np.float32(1 / (1 << (8 * size - 1)))
    if kind == "i" and size <= 4:
        return (pcm.astype(np.float64) / float(1 << (8 * size - 1))).astype(np.float32)
    if kind == "u" and size <= 4:
        half = float(1 << (8 * size - 1))
        return ((pcm.astype(np.float64) - half) / half).astype(np.float32)
    raise AudioFormatError(f"PCM of dtype {pcm.dtype}: expected int16, int32, uint8 or float")


def to_mono(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples (n,) or samples x channels (n, c) to mono (n,), the plain mean of the channels.

    Raises:
        AudioFormatError: another number of dimensions, or more than 64 channels.
    """
    if pcm.ndim == 1:
        return pcm
    if pcm.ndim != 2 or not 1 <= pcm.shape[1] <= MAX_CHANNELS:
        raise AudioFormatError(
            f"PCM of shape {pcm.shape}: expected (samples,) or (samples, channels) with at most"
            f" {MAX_CHANNELS} channels"
        )
    return pcm[:, 0] if pcm.shape[1] == 1 else pcm.mean(axis=1, dtype=np.float32)


def cleaned(pcm: NDArray[np.float32], report: PcmReport) -> NDArray[np.float32]:
    """Samples of any shape with silence for what is not finite, and nothing beyond [-1, 1].

    ``report`` counts both, and all samples.
    """
    report.samples += pcm.size
    if pcm.size == 0 or float(np.abs(pcm).max()) <= 1.0:  # not so where one is not a number
        return pcm
    finite = np.isfinite(pcm)
    if not finite.all():
        report.not_finite += int(pcm.size - np.count_nonzero(finite))
        pcm = np.where(finite, pcm, np.float32(0))
    beyond = int(np.count_nonzero(np.abs(pcm) > 1.0))
    if beyond:
        report.clipped += beyond
        pcm = np.clip(pcm, -1.0, 1.0)
    return pcm


class Resampler:
    """Mono float32 at any rate to 16 kHz: ceil(16000 n / rate) samples for n, however cut.

    Values that are not finite become 0, values beyond [-1, 1] are clipped; ``report`` counts both.
    """

    def __init__(self, rate: object) -> None:
        self.rate = check_rate(rate)
        self.report = PcmReport()
        self._out = 0
        self._stream = (
            None
            if self.rate == SAMPLE_RATE
            else soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        )

    def _run(self, pcm: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        if self._stream is None:
            out = np.ascontiguousarray(pcm)
        else:
            pieces = [
                self._stream.resample_chunk(np.ascontiguousarray(pcm[i : i + _BLOCK]), last=False)
                for i in range(0, len(pcm), _BLOCK)
            ]
            if last:
                pieces.append(self._stream.resample_chunk(np.zeros(0, np.float32), last=True))
            out = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        if last:  # exactly as long as the sound, whatever the filter's tail
            rest = -(-self.report.samples * SAMPLE_RATE // self.rate) - self._out
            out = np.pad(out[: max(0, rest)], (0, max(0, rest - len(out))))
        self._out += len(out)
        return out.astype(np.float32, copy=False)

    def push(self, pcm: NDArray[np.float32]) -> NDArray[np.float32]:
        """Feed mono samples; returns what is ready at 16 kHz (may be empty)."""
        return self._run(cleaned(pcm, self.report), last=False)

    def finish(self) -> NDArray[np.float32]:
        """The last samples; call once, and nothing after it."""
        return self._run(np.zeros(0, np.float32), last=True)
