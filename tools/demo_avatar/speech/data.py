# SPDX-License-Identifier: Apache-2.0
"""The speech corpus in memory, and its augmentation: speed and pitch, gain, noise, band, room."""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from lipsync_fast._native import MelStream

RATE, FRAME = 16_000, 640
ROWS = 16


@dataclass
class Utterance:
    """One recording: ``pcm`` int16 at 16 kHz and its ``controls``, frames x 8 at 25 a second."""

    name: str
    split: str
    origin: str
    pcm: NDArray[np.int16]
    controls: NDArray[np.float32]


BELIEVED = 0.9
"""Least part of a reader's frames that are aligned well, for the recording to be used."""


def load(work: pathlib.Path) -> list[Utterance]:
    """All utterances of WORK/speech/corpus, and those of WORK/speech/voices if it is there.

    The readers' recordings count as real ones, named ``real-libri-...``; those of readers who are
    kept for judging are left out.
    """
    folder = work / "speech" / "corpus"
    out = [utterance(folder, e) for e in json.loads((folder / "index.json").read_text())]
    folder = work / "speech" / "voices"
    for index in (folder / "index.json", folder / "synthetic.json"):
        for entry in json.loads(index.read_text()) if index.exists() else ():
            if entry["split"] != "test" and entry["valid"] >= BELIEVED:
                u = utterance(folder, entry)
                if u.origin == "reader":
                    u.name, u.origin = f"real-{u.name}", "real"
                out.append(u)
    return out


def utterance(folder: pathlib.Path, entry: dict[str, str]) -> Utterance:
    """An utterance of an index."""
    with np.load(folder / f"{entry['name']}.npz") as z:
        about = entry["name"], entry["split"], entry["origin"]
        return Utterance(*about, z["pcm"], z["controls"])


def mel(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel rows, (1 + N // 200) x 80."""
    stream = MelStream()
    return np.concatenate([stream.push(pcm), stream.finish()])


def controls_at(controls: NDArray[np.float32], seconds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Controls (frames x 8, at the frames' centres) at any times, ends held."""
    centres = (np.arange(len(controls)) + 0.5) / 25
    each = [np.interp(seconds, centres, controls[:, k]) for k in range(8)]
    return np.stack(each, 1).astype(np.float32)


def augmented(
    u: Utterance, rng: np.random.RandomState
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A changed copy: sound at 16 kHz and its controls, frames x 8."""
    speed = float(np.exp(rng.uniform(-0.16, 0.16)))
    pcm = soxr.resample(u.pcm.astype(np.float32) / 32768, RATE * speed, RATE, quality="MQ")
    shift = int(rng.randint(0, FRAME))
    pcm = pcm[shift:]
    frames = -(-len(pcm) // FRAME)
    times = ((np.arange(frames) + 0.5) / 25 + shift / RATE) * speed
    controls = controls_at(u.controls, times)
    pcm = pcm / (np.abs(pcm).max() + 1e-6)
    if rng.rand() < 0.35:  # a gentle tilt of the spectrum
        a = rng.uniform(-0.5, 0.5)
        pcm[1:] = pcm[1:] + a * pcm[:-1]
    if rng.rand() < 0.25:  # a small room
        taps = np.exp(-np.arange(2400) / rng.uniform(200, 900)) * rng.randn(2400) * 0.06
        taps[0] = 1.0
        size = len(pcm) + len(taps)
        pcm = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(taps, size))[: len(pcm)]
    if rng.rand() < 0.2:  # a telephone's band
        low = soxr.resample(pcm, RATE, 8000, quality="QQ")
        pcm = np.resize(soxr.resample(low, 8000, RATE, quality="QQ"), len(pcm))
    pcm = pcm / (np.abs(pcm).max() + 1e-6) * 10 ** (rng.uniform(-24, 0) / 20)
    if rng.rand() < 0.7:
        noise = rng.randn(len(pcm))
        if rng.rand() < 0.5:
            noise = np.convolve(noise, np.ones(8) / 8, mode="same") * 2
        level = np.sqrt(np.mean(pcm**2)) * 10 ** (-rng.uniform(8, 45) / 20)
        pcm = pcm + noise * level
    return np.clip(pcm, -1, 1).astype(np.float32), controls


def shifted(
    u: Utterance, rng: np.random.RandomState
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A copy that only begins later, by less than a frame, and has another loudness."""
    shift = int(rng.randint(0, FRAME))
    pcm = u.pcm[shift:].astype(np.float32)
    frames = -(-len(pcm) // FRAME)
    times = (np.arange(frames) + 0.5) / 25 + shift / RATE
    pcm = pcm / (np.abs(pcm).max() + 1e-6) * 10 ** (rng.uniform(-12, 0) / 20)
    return pcm.astype(np.float32), controls_at(u.controls, times)


def feature_windows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """All mel windows of a recording, F x 80 x 16, the last moved back as the reference does."""
    if len(rows) < ROWS:
        rows = np.concatenate([rows, np.full((ROWS - len(rows), 80), -4.0, np.float32)])
    count = int((len(rows) - ROWS) / 80 * 25) + 2
    starts = np.minimum((3.2 * np.arange(count)).astype(int), len(rows) - ROWS)
    return np.stack([rows[s : s + ROWS].T for s in starts])
