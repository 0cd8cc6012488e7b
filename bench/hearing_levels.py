# SPDX-License-Identifier: Apache-2.0
"""What is heard of a film's mouth when its sound is louder or quieter, with and without a gain.

    python bench/hearing_levels.py --folder FOLDER [--steps 160] [--parts 4] [--out FILE]

FOLDER is one that ``avatar prepare`` made, of somebody who speaks. The audio encoder is tuned to
the film without one part of it, once for each part, and hears that part at several levels. Said is
how well the opening that it tells follows the filmed one (r), how far it swings against what it
tells of the sound as it is, and how alike the two are. Only numbers leave the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from lipsync_fast.arrays import F32
from lipsync_fast.audio.pcm import to_float
from lipsync_fast.benchmark import program
from lipsync_fast.geometry import Rect
from lipsync_fast.models.packed import packed_encoder
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.rounding import rounded
from lipsync_fast.train.hearing import Hearing, Tuning, features_of, told
from lipsync_fast.train.lessons import sound_of
from lipsync_fast.train.mouths import Mouths
from lipsync_fast.train.options import Options
from lipsync_fast.train.sound import Encoder, find_encoder, mel_of

HEARD_DB = 0, 6, -10, -20, -30
GAINS = "none", "auto"


def tuned(encoder: Encoder, pcm: F32, mouths: Mouths, options: Options) -> Hearing:
    """An encoder, tuned to what ``mouths`` may be learnt from."""
    net = packed_encoder(encoder.onnx, encoder.source)
    torch.manual_seed(options.seed)
    mel = mel_of(pcm, options.audio)
    levelled, device = options.audio.levelled, torch.device("cpu")
    tuning = Tuning(net, mel, mouths, device, options.seed, options.hearing, levelled)
    for step in range(options.hearing):
        tuning.step(step)
    return tuning.done()


def heard(hearing: Hearing, pcm: F32, options: Options) -> F32:
    """The opening that is told of each frame."""
    features = features_of(hearing.encoder, mel_of(pcm, options.audio), torch.device("cpu"))
    opening: F32 = told(features, hearing.lag)[:, 0]
    return opening


def of_gain(prepared: PreparedAvatar, options: Options, parts: int) -> list[dict[str, Any]]:
    """A row for each level."""
    count, encoder = len(prepared), find_encoder("demo")
    pcm = to_float(sound_of(prepared))
    rects: list[Rect] = [prepared.rect(i) for i in range(count)]
    said: dict[int, list[F32]] = {db: [] for db in HEARD_DB}
    seen: list[F32] = []
    for part in range(parts):
        first, end = part * count // parts, (part + 1) * count // parts
        learnt = [i for i in range(count) if not first <= i < end]
        mouths = Mouths(prepared.landmarks, rects, options.region, learnt)
        hearing = tuned(encoder, pcm, mouths, options)
        there = [i for i in range(first, end) if np.isfinite(mouths.opening[i])]
        seen.append(np.asarray(mouths.opening[there], np.float32))
        for db in HEARD_DB:
            shifted = np.clip(pcm * np.float32(10 ** (db / 20)), -1, 1)
            said[db].append(heard(hearing, shifted, options)[there])
        print(f"{options.gain}: part {part + 1} of {parts}", flush=True)
    film, plain = np.concatenate(seen), np.concatenate(said[HEARD_DB[0]])
    rows = []
    for db in HEARD_DB:
        now = np.concatenate(said[db])
        r, alike = (float(np.corrcoef(now, other)[0, 1]) for other in (film, plain))
        swing = float(now.std() / plain.std())
        row = {"gain": options.gain, "level_db": db, "r": r, "swing": swing, "r_to_0_db": alike}
        rows.append(rounded(row))
    return rows


def main() -> int:
    """Write the result."""
    args = program.options(__doc__, folder=Path(), steps=160, parts=4, out=None)
    options = Options(recipe="follow", steps=1, after=2, region=256, hearing=args.steps)
    rows: list[dict[str, Any]] = []
    with PreparedAvatar.open(args.folder) as prepared:
        for gain in GAINS:
            rows += of_gain(prepared, msgspec.structs.replace(options, gain=gain), args.parts)
    for row in rows:
        print(row)
    if args.out is not None:  # the command line names the folder: that stays here
        program.write(args.out, program.about_this_machine() | {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
