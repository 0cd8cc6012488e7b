# SPDX-License-Identifier: Apache-2.0
"""Pictures to train the U-Net on: idle frames, and mouths of the training speech moved onto them.

    python dataset.py WORK [--count 4000]

Writes WORK/dataset.npz: controls and pictures of ``count`` frames of the training speech at the
canonical position, and where in the speech they lie; and WORK/loop.npz with the idle loop.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from geometry import MOUTH, Geometry, Mouths
from motion import FRAMES, Loop, move, over

WINDOW = (476, 244, 804, 572)
"""Part of the canonical picture that the face square can show, x0, y0, x1, y1."""


def save_loop(work: pathlib.Path, geometry: Geometry, area: np.ndarray) -> None:
    """Idle frames, rectangles, and per frame the maps from its face square to WINDOW."""
    loop = Loop(work, geometry)
    x0, y0, x1, y1 = WINDOW
    whole = np.zeros(loop.wall.shape[:2], np.float32)
    whole[MOUTH[1] : MOUTH[3], MOUTH[0] : MOUTH[2]] = area
    frames, rects, maps, people, walls, masks = [], [], [], [], [], []
    for pose, blink in zip(loop.poses, loop.blinks, strict=True):
        m = loop.mover.maps(pose)
        rect = loop.rectangle(m)
        person = loop.canonical(float(blink))
        frames.append(np.round(over(move(person, m), loop.wall) * 255).astype(np.uint8))
        rects.append(rect)
        square = np.s_[rect[1] : rect[3], rect[0] : rect[2]]
        maps.append(np.stack([m[0][square] - x0, m[1][square] - y0]).astype(np.float32))
        people.append(np.round(person[y0:y1, x0:x1] * 255).astype(np.uint8))
        walls.append(loop.wall[square].astype(np.float16))
        masks.append(cv2.remap(whole, m[0][square], m[1][square], cv2.INTER_LINEAR) > 0.02)
    np.savez(work / "loop.npz", frames=np.stack(frames), rects=np.array(rects, np.int32), maps=np.stack(maps), people=np.stack(people), walls=np.stack(walls), masks=np.stack(masks), blinks=loop.blinks)


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
    rows: list[tuple[str, int, bool]] = []
    for split, count in (("train", args.count), ("val", args.validation)):
        names = [e["name"] for e in index if e["split"] == split]
        seconds = np.array([e["seconds"] * (3.0 if e["origin"] == "real" else 1.0) for e in index if e["split"] == split])
        for name in rng.choice(names, count, p=seconds / seconds.sum()):
            frames = int(np.ceil(next(e["seconds"] for e in index if e["name"] == name) * 25 - 1e-9))
            rows.append((str(name), int(rng.randint(frames)), split == "val"))
    controls = np.stack([np.load(corpus / f"{n}.npz")["controls"][i] for n, i, _ in rows])
    pictures = np.zeros((len(rows), MOUTH[3] - MOUTH[1], MOUTH[2] - MOUTH[0], 4), np.uint8)
    area = np.zeros(pictures.shape[1:3], np.float32)

    def make(i: int) -> np.ndarray:
        picture, free = mouths.picture(controls[i])
        pictures[i] = np.round(picture * 255).astype(np.uint8)
        return free

    mouths.picture(controls[0])
    with ThreadPoolExecutor(2) as pool:
        for i, free in enumerate(pool.map(make, range(len(rows)))):
            area = np.maximum(area, free)
            if i % 500 == 0:
                print(f"{i}/{len(rows)}", flush=True)
    np.savez(args.work / "dataset.npz", pictures=pictures, controls=controls, names=[r[0] for r in rows], frames=[r[1] for r in rows], validation=[r[2] for r in rows], area=area)
    save_loop(args.work, geometry, area)
    print(f"{FRAMES} idle frames", flush=True)


if __name__ == "__main__":
    main()
