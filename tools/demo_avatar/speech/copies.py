# SPDX-License-Identifier: Apache-2.0
"""Changed copies of the corpus of voices, as mel rows: what the networks are trained on.

    python copies.py WORK [--readers 4 --others 1] [--share-alike]

Copy 0 of a recording is itself, with silence around it; the others have another pitch and tempo,
microphone, room, line and noise (disturb.py). Level, further voices and gaps in the spectrum are
added while training, in the mel rows. Writes WORK/speech/copies/NAME-K.npz; what is there is not
made again, so that a larger number adds copies. Copy K of a recording depends on nothing but its
name, K and the corpus.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import zlib
from dataclasses import dataclass

import numpy as np
from data import mel
from disturb import at_level, changed
from numpy.typing import NDArray
from voices import CLASSES, RATE, Voice, load

F32 = NDArray[np.float32]
ROW_S = 0.0125
"""Time from one mel row to the next."""
AROUND_S = (0.3, 1.5)
"""Silence before and after a recording, at least and at most."""
NEAR_S = 0.12
"""So near to a recording's ends the mouth may still move, or not yet rest."""
OTHERS = 40
"""Recordings that babble is made of."""
FLOOR_DB = -75.0
"""Level of the noise in the silence around a recording, below full scale."""


@dataclass(frozen=True)
class Copy:
    """A changed copy of a recording: mel rows, and where each of them lies in the recording."""

    voice: Voice
    rows: NDArray[np.float16]
    speed: float
    offset_s: float

    def at(self, seconds: NDArray[np.float64]) -> tuple[F32, NDArray[np.int64], F32]:
        """``Voice.at`` for moments of the copy; around the recording, the mouth rests."""
        moments = (seconds + self.offset_s) * self.speed
        controls, classes, believed = self.voice.at(moments)
        before, after = -moments, moments - self.voice.seconds
        outside = np.maximum(before, after)
        rests = outside > 0
        controls[rests], classes[rests] = 0, CLASSES.index("SIL")
        believed[rests] = outside[rests] > NEAR_S
        return controls, classes, believed


def seed_of(name: str, number: int) -> int:
    """A seed that is the same everywhere."""
    return zlib.crc32(f"{name} {number}".encode())


def surrounded(pcm: F32, rng: np.random.RandomState) -> tuple[F32, float]:
    """A recording with silence around it, and the seconds before it."""
    before, after = (int(rng.uniform(*AROUND_S) * RATE) for _ in range(2))
    out = np.concatenate([np.zeros(before), pcm, np.zeros(after)])
    out += rng.randn(len(out)) * 10 ** (FLOOR_DB / 20)
    return out.astype(np.float32), before / RATE


def write(voice: Voice, number: int, others: list[F32], path: pathlib.Path) -> None:
    """Make one copy, appearing whole."""
    rng = np.random.RandomState(seed_of(voice.name, number))
    pcm, before = surrounded(at_level(voice.sound, -20.0), rng)
    speed, offset = 1.0, -before
    if number:
        moved = changed(pcm, others, rng)
        pcm, speed = moved.pcm, moved.speed
        offset = moved.offset_s - before / speed
    rows = mel(np.clip(at_level(pcm, -20.0), -1, 1)).astype(np.float16)
    partial = path.with_suffix(".part.npz")
    np.savez(partial, rows=rows, speed=speed, offset_s=offset)
    os.replace(partial, path)


def load_copies(work: pathlib.Path, voices: list[Voice]) -> list[Copy]:
    """All copies that there are of some recordings."""
    folder, out = work / "speech" / "copies", []
    for voice in voices:
        number = 0
        while (path := folder / f"{voice.name}-{number}.npz").exists():
            with np.load(path) as z:
                out.append(Copy(voice, z["rows"], float(z["speed"]), float(z["offset_s"])))
            number += 1
    return out


def main() -> None:
    """Make the copies that are missing, the first of all recordings first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--others", type=int, default=1)
    parser.add_argument("--share-alike", action="store_true", help="with CC BY-SA recordings")
    args = parser.parse_args()
    folder = args.work / "speech" / "copies"
    folder.mkdir(parents=True, exist_ok=True)
    voices = [v for v in load(args.work, args.share_alike) if v.split == "train"]
    readers = [v for v in voices if v.origin == "reader"]
    others = [v.sound for v in readers[:: max(1, len(readers) // OTHERS)]]
    for number in range(1 + max(args.readers, args.others)):
        for voice in voices:
            wanted = args.readers if voice.origin == "reader" else args.others
            path = folder / f"{voice.name}-{number}.npz"
            if number <= wanted and not path.exists():
                write(voice, number, others, path)
        print(f"copy {number}", flush=True)


if __name__ == "__main__":
    main()
