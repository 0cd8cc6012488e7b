# SPDX-License-Identifier: Apache-2.0
"""Sound for a student to hear its teacher by: recordings, and what can be made of them.

The last part of each recording is held out. Of the rest there are variants of other tempi, vocal
tracts, levels and lines, until there are some minutes: a teacher answers to anything.
"""

from __future__ import annotations

import hashlib
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.errors import MediaError, TrainingError
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.timing import SAMPLE_RATE
from lipsync_fast.train.hearing import MELS, ROWS_A_FRAME, SILENT, Sounds, track, variant
from lipsync_fast.train.sound import mel_of

SHIPPED = "the recording that comes with lipsync-fast"
LEAST_S, MOST_S = 5.0, 1200.0
"""A recording with less is refused; of all together no more is used."""
HELD_SHARE, HELD_LEAST_S, HELD_MOST_S = 0.2, 2.0, 20.0
"""What is held out of each."""
GAP_S = 0.8
"""Between what is learnt from and what is held out: a frame sees the sound around it."""
ENOUGH_S = 200.0
"""Variants are made up to so much."""
QUIET_S = 6.0
TILT, MIXED = 0.5, 0.3
"""How bright or dull a line may be, in mel units at the ends, and how often two speak at once."""

Encode = Callable[[F32], F32]
"""Mel windows N x 16 x 80 to N x 512."""


@dataclass(frozen=True, slots=True)
class Speech:
    """Recordings as mel rows.

    Attributes:
        mels: of each, T x 80.
        names: what they are called.
        key: hash of all of it.
    """

    mels: list[F32]
    names: list[str]
    key: str

    @property
    def seconds(self) -> float:
        """Of all together."""
        return sum(len(mel) for mel in self.mels) / ROWS_A_FRAME / 25


def read_speech(files: Sequence[Path], window: AudioWindow) -> tuple[Speech, list[str]]:
    """The shipped recording and those of the files; and what is to be said of them.

    Args:
        files: recordings.
        window: the teacher's, which says whether levels are evened out.

    Raises:
        MediaError: a file holds no sound, or cannot be read.
        TrainingError: one is too short.
    """
    pcms: list[NDArray[np.generic]] = [_shipped()]
    names, warnings, left = [SHIPPED], [], MOST_S
    for path in files:
        pcm, said = _read(path, left)
        seconds = len(pcm) / SAMPLE_RATE
        if seconds < min(LEAST_S, left):
            raise TrainingError(f"{path}: {seconds:.1f} s of sound; expected {LEAST_S:g} s or more")
        warnings += said
        left -= seconds
        pcms.append(pcm)
        names.append(path.name)
        if left <= 0:
            warnings.append(f"{path}: no more than {MOST_S:g} s of speech are used in all")
            break
    digest = hashlib.sha256()
    for samples in pcms:
        digest.update(hashlib.sha256(np.ascontiguousarray(samples).tobytes()).digest())
    mels = [mel_of(samples, window) for samples in pcms]
    return Speech(mels, names, digest.hexdigest()), warnings


def _shipped() -> NDArray[np.int16]:
    with (
        resources.as_file(resources.files("lipsync_fast") / "data/demo/speech.wav") as path,
        wave.open(str(path), "rb") as file,
    ):
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def _read(path: Path, most_s: float) -> tuple[F32, list[str]]:
    """A file's sound, no more of it than is wanted, 16 kHz mono."""
    pieces: list[F32] = []
    count, most = 0, int(most_s * SAMPLE_RATE)
    with MediaSource(path) as source:
        for piece in source:
            pieces.append(piece)
            count += len(piece)
            if count >= most:
                break
        warnings = [f"{path}: {text}" for text in source.warnings]
    if not count:
        raise MediaError(f"{path}: has no sound")
    return np.concatenate(pieces)[:most], warnings


def learnt_and_held(
    speech: Speech, encode: Encode, window: AudioWindow, seed: int
) -> tuple[Sounds, Sounds]:
    """What a student learns to answer to, and what it is tried with.

    Args:
        encode: the teacher's audio encoder.
        window: which vectors a frame sees.
        seed: of the variants.
    """
    rng = np.random.default_rng([seed, 23])
    learnt, held = [], []
    for mel in speech.mels:
        own, rest = _split(mel)
        learnt.append(own)
        held.append(rest)
    some = list(learnt)
    rows = sum(map(len, some))
    while rows < ENOUGH_S * 25 * ROWS_A_FRAME:
        for own in learnt:
            some.append(_another(own, rng))
            rows += len(some[-1])
    quiet = np.full((int(QUIET_S * 25 * ROWS_A_FRAME), MELS), SILENT, np.float32)
    some.append(quiet)
    return (
        Sounds([track(encode, mel) for mel in some], window),
        Sounds([track(encode, mel) for mel in held], window),
    )


def _split(mel: F32) -> tuple[F32, F32]:
    rows_s = 25 * ROWS_A_FRAME
    held = int(rows_s * min(HELD_MOST_S, max(HELD_LEAST_S, HELD_SHARE * len(mel) / rows_s)))
    return mel[: len(mel) - held - int(GAP_S * rows_s)], mel[-held:]


def _another(mel: F32, rng: np.random.Generator) -> F32:
    """A variant, of another line, or with another one of it beside it."""
    out = variant(mel, rng) + np.float32(rng.normal(0, TILT)) * np.linspace(
        -1, 1, MELS, dtype=np.float32
    )
    if rng.random() < MIXED:
        other = np.roll(variant(mel, rng), int(rng.integers(len(mel))), 0)
        count = min(len(out), len(other))
        out = np.maximum(out[:count], other[:count] - np.float32(rng.uniform(0, 1)))
    return np.asarray(np.clip(out, SILENT, 4), np.float32)
