# SPDX-License-Identifier: Apache-2.0
"""PCM of any rate and layout to 16 kHz mono float32, as a stream in bounded memory."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from lipsync_fast.errors import AudioFormatError
from lipsync_fast.timing import SAMPLE_RATE
from lipsync_fast_client.samples import PcmReport as PcmReport
from lipsync_fast_client.samples import cleaned as cleaned
from lipsync_fast_client.samples import to_float as to_float

MIN_RATE, MAX_RATE = 4_000, 768_000
MAX_CHANNELS = 64
_BLOCK = 1 << 18


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
