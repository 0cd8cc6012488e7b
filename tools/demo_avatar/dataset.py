# SPDX-License-Identifier: Apache-2.0
"""Pictures to train the U-Net on: idle frames, and mouths of the training speech moved onto them.

    python dataset.py WORK [--count 4000]

Writes two files. H x W is the mouth box, S the face square's side, N the samples, F the frames.

- WORK/dataset.npz: ``pictures`` (N x H x W x 4, premultiplied RGBA) of mouths at the canonical
  position with their ``controls`` (N x 8); where in the speech they lie (``names`` and ``frames``);
  ``validation`` (N): not for training; ``area`` (H x W): how far any of them differs from the
  neutral picture, 0..1.
- WORK/loop.npz: the idle loop's ``frames`` (F x height x width x 3) and their face squares:
  ``rects`` (F x 4), ``maps`` (F x 2 x S x S: where in the layout's window a pixel comes from, x
  then y), ``masks`` (F x S x S: what speech can change); ``people`` (F x window x 4) and ``walls``
  (F x S x S x 3) to put a square together; ``blinks`` (F).
"""

from __future__ import annotations

import argparse
import json
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from geometry import F32, Geometry, Mouths
from motion import FRAMES, Loop, move, over
from numpy.typing import NDArray

FPS = 25
REAL_WEIGHT = 3.0
"""Real recordings are drawn so much more often for their length than synthetic ones."""


def save_loop(work: pathlib.Path, geometry: Geometry, area: F32) -> None:
    """Write loop.npz; ``area`` is what speech can change in the mouth box, H x W."""
    loop = Loop(work, geometry)
    x0, y0, x1, y1 = geometry.layout.window
    whole = np.zeros(loop.wall.shape[:2], np.float32)
    left, top, right, bottom = geometry.layout.mouth
    whole[top:bottom, left:right] = area
    frames, rects, maps, people, walls, masks = [], [], [], [], [], []
    for pose, blink in zip(loop.poses, loop.blinks, strict=True):
        from_x, from_y = moved = loop.mover.maps(pose)
        rect = loop.rectangle(moved)
        square = np.s_[rect[1] : rect[3], rect[0] : rect[2]]
        person = loop.canonical(float(blink))
        frames.append(np.round(over(move(person, moved), loop.wall) * 255).astype(np.uint8))
        rects.append(rect)
        maps.append(np.stack([from_x[square] - x0, from_y[square] - y0]).astype(np.float32))
        people.append(np.round(person[y0:y1, x0:x1] * 255).astype(np.uint8))
        walls.append(loop.wall[square].astype(np.float16))
        masks.append(cv2.remap(whole, from_x[square], from_y[square], cv2.INTER_LINEAR) > 0.02)
    np.savez(
        work / "loop.npz",
        frames=np.stack(frames),
        rects=np.array(rects, np.int32),
        maps=np.stack(maps),
        people=np.stack(people),
        walls=np.stack(walls),
        masks=np.stack(masks),
        blinks=loop.blinks,
    )


def draw(
    index: list[dict[str, Any]], split: str, count: int, rng: np.random.RandomState
) -> list[tuple[str, int]]:
    """Recordings of a split and random frames in them, ``count`` pairs."""
    entries = [entry for entry in index if entry["split"] == split]
    weights = np.array(
        [e["seconds"] * (REAL_WEIGHT if e["origin"] == "real" else 1.0) for e in entries]
    )
    seconds = {e["name"]: e["seconds"] for e in entries}
    drawn = []
    for name in rng.choice([e["name"] for e in entries], count, p=weights / weights.sum()):
        frames = int(np.ceil(seconds[name] * FPS - 1e-9))
        drawn.append((str(name), int(rng.randint(frames))))
    return drawn


def mouth_pictures(mouths: Mouths, controls: F32) -> tuple[NDArray[np.uint8], F32]:
    """Pictures (N x H x W x 4) of N x 8 controls, and what any of them may change (H x W)."""
    pictures = np.zeros((len(controls), *mouths.neutral.shape), np.uint8)
    area = np.zeros(pictures.shape[1:3], np.float32)

    def make(i: int) -> F32:
        picture, free = mouths.picture(controls[i])
        pictures[i] = np.round(picture * 255).astype(np.uint8)
        return free

    make(0)  # compiles the rasteriser before two threads want it
    with ThreadPoolExecutor(2) as pool:
        for i, free in enumerate(pool.map(make, range(len(controls)))):
            area = np.maximum(area, free)
            if i % 500 == 0:
                print(f"{i}/{len(controls)}", flush=True)
    return pictures, area


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--validation", type=int, default=60)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    geometry = Geometry(args.work)
    mouths = Mouths(args.work, geometry)
    print(f"{len(mouths.pictures)} rendered pictures", flush=True)
    corpus = args.work / "speech" / "corpus"
    index = json.loads((corpus / "index.json").read_text())
    rng = np.random.RandomState(8)
    train = draw(index, "train", args.count, rng)
    rows = train + draw(index, "val", args.validation, rng)
    controls = np.stack([np.load(corpus / f"{name}.npz")["controls"][i] for name, i in rows])
    pictures, area = mouth_pictures(mouths, controls)
    np.savez(
        args.work / "dataset.npz",
        pictures=pictures,
        controls=controls,
        names=[name for name, _ in rows],
        frames=[i for _, i in rows],
        validation=[k >= len(train) for k in range(len(rows))],
        area=area,
    )
    save_loop(args.work, geometry, area)
    print(f"{FRAMES} idle frames", flush=True)


if __name__ == "__main__":
    main()
