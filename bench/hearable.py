# SPDX-License-Identifier: Apache-2.0
"""How much of a mouth can be heard at all, and how much film it takes to learn it.

    python bench/hearable.py FOLDER... [--whisper FOLDER] [--out FILE]

FOLDER is one that ``avatar prepare`` made with a face mesh. The opening of each eighth of the film
is foretold from its sound by what kernel regression has learnt from the rest, without the frames
beside it, and compared with what was filmed (r). Sound is seen by it as mel windows of several
lengths; with ``--whisper``, also as what Whisper-base's encoder makes of the whole sound: FOLDER
has its CTranslate2 files, and PyPI's ``faster-whisper`` must be there. Then the same with less film
to learn from. Only numbers leave the folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.timing import FPS, SAMPLE_RATE
from lipsync_fast.train.hearing import ROWS_A_FRAME, SILENT
from lipsync_fast.train.mouths import MESHES, opening
from lipsync_fast.train.sound import mel_of

MARGIN_ROWS = 60
PARTS, GUARD = 8, 6
"""Of the film, and frames beside an unheard part that are not learnt from either."""
LENGTHS = (16, 24, 32, 48)
"""Of mel windows, in rows of 12.5 ms."""
TAPER = 3.5 / 16
"""Of a window: what is so far from its middle counts 0.78."""
SHIFTS = (-1, 0, 1, 2)
"""Frames from a window's middle back to the mouth that it tells of: the best one counts."""
RIDGES = (0.05, 0.2)
SECONDS = (8, 15, 25, 40, 60, 90, 120, 240)
TRIES = 6
"""Places in the film from which so many seconds are taken."""
TOKENS_A_FRAME = 2
CHUNK_S, STEP_S = 20, 16


def parts(count: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Frames of each part, and those that may be learnt from to foretell it."""
    part = np.arange(count) * PARTS // count
    for k in range(PARTS):
        own = part == k
        among = np.flatnonzero(own)
        rest = ~own
        rest[max(0, among[0] - GUARD) : among[-1] + GUARD + 1] = False
        yield own, rest


def foretold(known: F32, openings: F32, unknown: F32, ridge: float) -> F32:
    """Kernel ridge regression; the kernel is as wide as the median distance."""

    def distances(a: F32, b: F32) -> F32:
        out: F32 = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T)
        return out

    apart = distances(known, known)
    width = float(np.median(apart))
    mean = openings.mean()
    gram = np.exp(-apart / width) + ridge * np.eye(len(known), dtype=np.float32)
    weights = np.linalg.solve(gram, openings - mean)
    out: F32 = np.exp(-distances(unknown, known) / width) @ weights + mean
    return out


def cross_validated(
    features: F32, openings: F32, ridge: float, seconds: float | None = None, seed: int = 0
) -> float:
    """r of the opening in parts that were not heard, learnt from so much of the rest."""
    told = np.zeros_like(openings)
    rng = np.random.default_rng(seed)
    for own, rest in parts(len(openings)):
        among = np.flatnonzero(rest)
        if seconds is not None:
            first = int(rng.integers(len(among)))
            among = np.take(among, np.arange(first, first + int(seconds * FPS)), mode="wrap")
        told[own] = foretold(features[among], openings[among], features[own], ridge)
    return float(np.corrcoef(told, openings)[0, 1])


def windows(mel: F32, frames: int, rows: int, shift: int) -> F32:
    """Mel windows around each frame, their middles weighing most: frames x (rows x 80)."""
    padded = np.pad(mel, ((MARGIN_ROWS, MARGIN_ROWS + rows), (0, 0)), constant_values=SILENT)
    middles = np.round((np.arange(frames) + 0.5 + shift) * ROWS_A_FRAME).astype(int) + MARGIN_ROWS
    cut = np.stack([padded[m - rows // 2 : m - rows // 2 + rows] for m in middles])
    cut = (cut - cut.mean(0)) / (cut.std(0) + 1e-6)
    aside = (np.arange(rows) - (rows - 1) / 2) / (TAPER * rows)
    weight = np.exp(-(aside**2) / 4)[:, None]
    return (cut * weight).reshape(frames, -1).astype(np.float32)


def whisper_features(pcm: NDArray[np.int16], model: Path) -> F32:
    """What Whisper's encoder makes of a sound, 50 rows a second, from overlapping chunks."""
    module = importlib.import_module("faster_whisper")
    whisper = module.WhisperModel(str(model), device="cpu", compute_type="float32", cpu_threads=1)
    sound = pcm.astype(np.float32) / 32768
    hop = SAMPLE_RATE // (TOKENS_A_FRAME * FPS)
    total = -(-len(sound) // hop)
    out, weights = np.zeros((total, 512), np.float32), np.zeros(total, np.float32)
    for start in range(0, len(sound), STEP_S * SAMPLE_RATE):
        piece = sound[start : start + CHUNK_S * SAMPLE_RATE]
        mel = whisper.feature_extractor(piece, padding=True)[:, :3000]
        mel = np.pad(mel, ((0, 0), (0, 3000 - mel.shape[1])))
        made = np.array(whisper.encode(mel))[0]
        first = start // hop
        count = min(len(piece) // hop, total - first)
        ramp = np.minimum(np.arange(count) + 1, np.arange(count, 0, -1)).clip(1, 50)
        out[first : first + count] += made[:count] * ramp[:, None]
        weights[first : first + count] += ramp
    return (out / np.maximum(weights, 1e-6)[:, None]).astype(np.float32)


def whisper_windows(rows: F32, frames: int, shift: int) -> F32:
    """Whisper's rows around each frame, six of them: frames x 3072."""
    rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-6)
    at = TOKENS_A_FRAME * (np.arange(frames) + shift)[:, None] + np.arange(-2, 4)[None]
    taken: F32 = rows[np.clip(at, 0, len(rows) - 1)].reshape(frames, -1)
    return taken


def of_film(folder: Path, whisper: Path | None) -> dict[str, float]:
    """What was found in one film."""
    with PreparedAvatar.open(folder) as film:
        points, pcm = film.landmarks, film.sound()
    if points.shape[1] not in MESHES or pcm is None:
        raise SystemExit(f"{folder}: needs a face mesh and sound")
    raw = opening(points)
    seen = np.isfinite(raw)
    openings = np.interp(np.arange(len(raw)), np.flatnonzero(seen), raw[seen]).astype(np.float32)
    openings = (openings - openings.mean()) / openings.std()
    mel, frames = mel_of(pcm, AudioWindow()), len(openings)
    out: dict[str, float] = {"seconds": frames / FPS}
    best = (-1.0, 0, 0.0)
    for rows in LENGTHS:
        shifted = {shift: windows(mel, frames, rows, shift) for shift in SHIFTS}
        tried = [
            (cross_validated(features, openings, ridge), shift, ridge)
            for shift, features in shifted.items()
            for ridge in RIDGES
        ]
        out[f"mel, {rows * 12.5:.0f} ms"] = round(max(tried)[0], 3)
        best = max(tried) if rows == LENGTHS[0] else best
    if whisper is not None:
        heard = whisper_features(pcm, whisper)
        out["Whisper-base's encoder"] = round(
            max(
                cross_validated(whisper_windows(heard, frames, shift), openings, ridge)
                for shift in SHIFTS
                for ridge in RIDGES
            ),
            3,
        )
    features = windows(mel, frames, LENGTHS[0], best[1])
    for seconds in SECONDS:
        if seconds * PARTS / (PARTS - 1) < frames / FPS - 1:
            some = [
                cross_validated(features, openings, best[2], seconds, seed) for seed in range(TRIES)
            ]
            out[f"learnt from {seconds} s"] = round(float(np.mean(some)), 3)
    return out


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--whisper", type=Path, metavar="FOLDER", help="Whisper-base's files")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write JSON")
    args = parser.parse_args()
    found = [of_film(folder, args.whisper) for folder in args.folders]
    for number, film in enumerate(found, 1):
        print(f"film {number}")
        for name, value in film.items():
            print(f"  {name:24} {value:g}")
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
