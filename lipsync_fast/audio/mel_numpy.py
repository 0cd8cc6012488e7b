# SPDX-License-Identifier: Apache-2.0
"""The mel front end in plain numpy: the readable reference of ``csrc/mel.hpp``.

Pre-emphasis 0.97; STFT of 800 samples every 200 with a periodic Hann window, centred, zero padded;
magnitude; 80 Slaney mel bands from 55 to 7600 Hz; 20 log10(max(1e-5, m)) - 20 decibels;
scaled to clip(8 (S + 100) / 100 - 4, -4, 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.timing import SAMPLE_RATE

N_FFT, HOP, N_MELS = 800, 200, 80
F_MIN, F_MAX = 55.0, 7600.0
PREEMPHASIS = 0.97


def _hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear to 1 kHz, logarithmic above."""
    return np.where(
        hz < 1000.0,
        hz * 3.0 / 200.0,
        15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) * 27.0 / np.log(6.4),
    )


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(
        mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp(np.log(6.4) * (mel - 15.0) / 27.0)
    )


def mel_bank() -> NDArray[np.float32]:
    """The 80 x 401 triangles of the mel bank, float32, each of Slaney's unit area."""
    low, high = (float(v) for v in _hz_to_mel(np.array([F_MIN, F_MAX])))
    edges_mel = np.linspace(low, high, N_MELS + 2)
    edges = _mel_to_hz(edges_mel)
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rise = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rise, fall))
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def hann_window() -> NDArray[np.float64]:
    """The periodic Hann window of 800 samples."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)


def mel(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel rows of a whole recording.

    Args:
        pcm: N samples, mono, 16 kHz, in [-1, 1].

    Returns:
        (1 + N // 200) x 80 float32 in [-4, 4], one row every 12.5 ms.

    Raises:
        ValueError: ``pcm`` is not one-dimensional.
    """
    if pcm.ndim != 1:
        raise ValueError(f"pcm has shape {pcm.shape}: expected one dimension")
    x = pcm.astype(np.float64)
    emphasised = np.concatenate([x[:1], x[1:] - PREEMPHASIS * x[:-1]])
    padded = np.pad(emphasised, N_FFT // 2)
    rows = 1 + len(pcm) // HOP
    window, bank = hann_window(), mel_bank().astype(np.float64)
    out = np.empty((rows, N_MELS), np.float32)
    for start in range(0, rows, 1024):  # bounded memory for long recordings
        stop = min(rows, start + 1024)
        index = np.arange(start, stop)[:, None] * HOP + np.arange(N_FFT)[None]
        magnitude = np.abs(np.fft.rfft(padded[index] * window, axis=1))
        level = 20.0 * np.log10(np.maximum(1e-5, magnitude @ bank.T)) - 20.0
        out[start:stop] = np.clip(8.0 * (level + 100.0) / 100.0 - 4.0, -4.0, 4.0)
    return out
