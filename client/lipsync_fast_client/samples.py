# SPDX-License-Identifier: Apache-2.0
"""Arrays of samples as float32 within [-1, 1], and what was mended on the way. Needs NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_fast_client.errors import AudioFormatError
from lipsync_fast_client.protocol import AudioFormat

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


def encoded(pcm: Any, audio: AudioFormat, report: PcmReport) -> bytes:
    """An array of samples, (n,) or (n, channels), in the form that a session's sound has.

    Raises:
        AudioFormatError: it is none, or has other channels.
    """
    array = np.asarray(pcm)
    if array.dtype.kind not in "iuf":
        raise AudioFormatError(
            f"pcm of type {type(pcm).__name__}: expected bytes, or an array of samples"
        )
    channels = array.shape[1] if array.ndim == 2 else 1
    if array.ndim not in (1, 2) or channels != audio.channels:
        raise AudioFormatError(
            f"pcm of shape {array.shape}: expected {audio.channels}"
            f" channel{'s' if audio.channels > 1 else ''}, as the session was begun with"
        )
    if audio.format == "s16le" and array.dtype == np.int16:
        return array.astype("<i2").tobytes()
    samples = cleaned(to_float(array if array.ndim == 2 else array[:, None]), report)
    if audio.format == "f32le":
        return samples.astype("<f4").tobytes()
    loud = np.clip(np.rint(samples * 32768.0), -32768, 32767)
    return bytes(loud.astype("<i2").tobytes())
