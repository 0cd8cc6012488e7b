# SPDX-License-Identifier: Apache-2.0
"""What happens to speech on its way to the encoder: level, noise, rooms, lines, other voices.

Each function takes sound (float32, mono, 16 kHz) and gives sound of the same length with the
speech at the same place, so that what the mouth does stays known; ``stretched`` alone moves it, by
a known factor. Used to train (``changed``) and, with fixed numbers, to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

F32 = NDArray[np.float32]
RATE = 16_000
FRAME_S = 0.025
"""What counts as a moment when the level of speech is measured."""


def speech_level(pcm: F32) -> float:
    """Root mean square of the moments with speech: those within 25 dB of the loudest."""
    step = int(FRAME_S * RATE)
    n = max(1, len(pcm) // step)
    power = np.mean(np.resize(pcm, n * step).reshape(n, step).astype(np.float64) ** 2, axis=1)
    loud = power > np.quantile(power, 0.98) * 10**-2.5
    return float(np.sqrt(power[loud].mean() + 1e-12))


def at_level(pcm: F32, db: float) -> F32:
    """Speech of so many decibels (root mean square; 0 is a square wave that fills the range)."""
    gain = 10 ** (db / 20) / speech_level(pcm)
    return (pcm * gain).astype(np.float32)


def mixed(pcm: F32, noise: F32, snr_db: float) -> F32:
    """Speech over noise, so many decibels below the speech; the noise is cut or repeated."""
    noise = np.resize(noise, len(pcm))
    gain = speech_level(pcm) * 10 ** (-snr_db / 20) / (np.sqrt(np.mean(noise**2)) + 1e-9)
    return (pcm + noise * gain).astype(np.float32)


def babble(others: Sequence[F32], seconds: float, rng: np.random.RandomState) -> F32:
    """Several people who talk at once."""
    count = int(seconds * RATE)
    total = np.zeros(count)
    for other in others:
        start = rng.randint(len(other))
        total += np.resize(np.roll(other, -start), count) / speech_level(other)
    return total.astype(np.float32)


def hiss(seconds: float, rng: np.random.RandomState) -> F32:
    """Noise whose spectrum falls by 0 to 6 dB an octave, at times with a mains hum."""
    count = int(seconds * RATE)
    noise = rng.randn(count)
    noise = lfilter([1.0], [1.0, -rng.uniform(0, 0.97)], noise)
    noise /= np.sqrt(np.mean(noise**2))
    if rng.rand() < 0.3:
        t = np.arange(count) / RATE
        base = rng.choice([50.0, 60.0])
        for k in range(1, 6):
            noise += rng.uniform(0, 0.7) * np.sin(2 * np.pi * base * k * t + rng.uniform(0, 6))
    return noise.astype(np.float32)


def music(seconds: float, rng: np.random.RandomState) -> F32:
    """Something like music: chords of decaying tones, a bass and a beat, at a random speed."""
    count = int(seconds * RATE)
    out = np.zeros(count + 2 * RATE)
    beat = 60 / rng.uniform(70, 150)
    root = rng.uniform(110, 220)
    chords = ((0, 4, 7), (5, 9, 12), (7, 11, 14), (9, 12, 16))
    t = np.arange(2 * RATE) / RATE
    for k in range(int(seconds / beat) + 1):
        at = int(k * beat * RATE)
        chord = chords[(k // 4) % 4]
        notes = [chord[rng.randint(3)] + 12 * rng.randint(2), chord[0] - 12]
        if k % 4 == 0:
            notes += list(chord)
        for note in notes:
            hz = root * 2 ** (note / 12)
            decay = np.exp(-t * rng.uniform(1.5, 6))
            tone = sum(np.sin(2 * np.pi * hz * h * t) / h**1.3 for h in range(1, 7))
            out[at : at + len(t)] += decay * tone * rng.uniform(0.4, 1.0)
        if rng.rand() < 0.8:
            drum = rng.randn(len(t)) * np.exp(-t * rng.uniform(20, 60))
            out[at : at + len(t)] += 2.0 * drum
    return out[:count].astype(np.float32)


def in_room(pcm: F32, rt60_s: float, direct_db: float, rng: np.random.RandomState) -> F32:
    """Speech in a room whose sound falls by 60 dB in ``rt60_s``; direct over reverberant energy."""
    taps = rng.randn(int(rt60_s * RATE)) * 10 ** (
        -3 * np.arange(int(rt60_s * RATE)) / RATE / rt60_s
    )
    taps[: int(0.003 * RATE)] = 0
    taps = lfilter([1.0], [1.0, -rng.uniform(0.2, 0.7)], taps)  # walls take the high tones
    taps *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(taps**2))
    taps[0] = 1.0
    out: F32 = fftconvolve(pcm, taps)[: len(pcm)].astype(np.float32)
    return out


def telephone(pcm: F32, companded: bool = True) -> F32:
    """300 to 3400 Hz at 8000 samples a second, and G.711's mu-law steps."""
    peak = np.abs(pcm).max() + 1e-9
    low = soxr.resample(pcm / peak, RATE, 8000)
    low = sosfilt(butter(4, (300, 3400), "bandpass", fs=8000, output="sos"), low)
    if companded:
        coded = np.sign(low) * np.log1p(255 * np.abs(low)) / np.log(256)
        coded = np.round(coded * 127) / 127
        low = np.sign(coded) * (256 ** np.abs(coded) - 1) / 255
    out = soxr.resample(low, 8000, RATE)
    return (np.resize(out, len(pcm)) * peak).astype(np.float32)


def band(pcm: F32, top_hz: float) -> F32:
    """Nothing above a frequency, as narrow codecs leave it."""
    out: F32 = sosfilt(butter(6, top_hz, fs=RATE, output="sos"), pcm).astype(np.float32)
    return out


def coloured(pcm: F32, rng: np.random.RandomState) -> F32:
    """Another microphone: a tilt and two broad bumps of up to 8 dB."""
    spectrum = np.fft.rfft(pcm)
    octave = np.log2(np.maximum(np.arange(len(spectrum)) / len(spectrum) * RATE / 2, 50) / 1000)
    db = rng.uniform(-3, 3) * octave
    for _ in range(2):
        db += rng.uniform(-8, 8) * np.exp(-(((octave - rng.uniform(-3, 3)) / 0.7) ** 2))
    out: F32 = np.fft.irfft(spectrum * 10 ** (db / 20), len(pcm)).astype(np.float32)
    return out


def resampled(pcm: F32, factor: float) -> F32:
    """Faster and higher by a factor, as a tape."""
    out: F32 = soxr.resample(pcm, RATE * factor, RATE, quality="MQ").astype(np.float32)
    return out


def stretched(pcm: F32, tempo: float) -> F32:
    """Faster by a factor at the same pitch: overlapping pieces, each laid where it fits best."""
    size, hop, reach = 640, 320, 160
    window = np.hanning(size + 1)[:-1]
    count = int(len(pcm) / tempo) // hop
    padded = np.pad(pcm.astype(np.float64), (reach, size + reach + int(2 * hop * tempo)))
    out = np.zeros(count * hop + size)
    wanted = padded[reach : reach + size]
    for k in range(count):
        at = int(k * hop * tempo) + reach
        near = padded[at - reach : at + reach + size]
        if k and near.any():
            fits = fftconvolve(near, wanted[::-1], mode="valid")
            energy = np.cumsum(np.concatenate([[0.0], near**2]))
            best = int(np.argmax(fits / np.sqrt(energy[size:] - energy[:-size] + 1e-6)))
            at += best - reach
        out[k * hop : k * hop + size] += padded[at : at + size] * window
        wanted = padded[at + hop : at + hop + size]
    return out[: count * hop].astype(np.float32)


@dataclass(frozen=True)
class Moved:
    """Changed sound, and how to find a moment of it in the sound that it was made from.

    ``original = (seconds + offset_s) * speed``.
    """

    pcm: F32
    speed: float
    offset_s: float


def changed(pcm: F32, others: Sequence[F32], rng: np.random.RandomState) -> Moved:
    """One random way of it all, for training.

    Args:
        pcm: Clean speech.
        others: Speech of others, for babble; eight or more pieces.
        rng: Says what happens.

    The level is left at -20 dB: it is changed in the mel rows, which is exact.
    """
    pitch = 2 ** (rng.uniform(-5, 5) / 12) if rng.rand() < 0.6 else 1.0
    tempo = rng.uniform(0.8, 1.3) if rng.rand() < 0.6 else 1.0
    if tempo == 1.0 or abs(np.log(pitch)) > abs(np.log(tempo)) + 0.2:
        tempo = float(np.clip(pitch ** rng.uniform(0.3, 1.0), 0.8, 1.3))
    if pitch != 1.0:
        pcm = resampled(pcm, pitch)
    if abs(tempo / pitch - 1) > 0.02:
        pcm = stretched(pcm, tempo / pitch)
    else:
        tempo = pitch
    shift = rng.randint(0, 640)
    pcm = at_level(pcm[shift:], -20.0)
    if rng.rand() < 0.5:
        pcm = coloured(pcm, rng)
    seconds = len(pcm) / RATE
    if rng.rand() < 0.35:
        pcm = in_room(pcm, rng.uniform(0.15, 1.0), rng.uniform(-3, 12), rng)
    kind = rng.rand()
    if kind < 0.30:
        voices = [others[i] for i in rng.randint(len(others), size=rng.randint(3, 9))]
        pcm = mixed(pcm, babble(voices, seconds, rng), rng.uniform(8, 32))
    elif kind < 0.45:
        pcm = mixed(pcm, music(seconds, rng), rng.uniform(5, 30))
    elif kind < 0.75:
        pcm = mixed(pcm, hiss(seconds, rng), rng.uniform(5, 45))
    line = rng.rand()
    if line < 0.2:
        pcm = telephone(pcm, companded=rng.rand() < 0.7)
    elif line < 0.3:
        pcm = band(pcm, rng.uniform(3000, 7000))
    return Moved(pcm.astype(np.float32), tempo, shift / RATE)
