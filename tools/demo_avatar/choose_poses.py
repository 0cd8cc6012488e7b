# SPDX-License-Identifier: Apache-2.0
"""Choose the mouth poses to render so that every pose of the speech corpus lies near one.

    python choose_poses.py WORK [--count 400]

Takes medoids of k-means over the training frames' controls. Writes WORK/poses.npy (count x 8).
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
from controls import EFFECT
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

SCALE = np.array(EFFECT)
SAMPLE = 20_000
"""Frames of the corpus that are looked at."""


def training_frames(corpus: pathlib.Path) -> NDArray[np.float32]:
    """Controls of SAMPLE frames of the training split (SAMPLE x 8), in random order."""
    index = json.loads((corpus / "index.json").read_text())
    names = [entry["name"] for entry in index if entry["split"] == "train"]
    controls = np.concatenate([np.load(corpus / f"{name}.npz")["controls"] for name in names])
    rng = np.random.RandomState(3)
    return controls[rng.permutation(len(controls))[:SAMPLE]]


def medoids(frames: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The frames (count x 8) nearest to the centres of k-means."""
    centres, _ = kmeans2(frames * SCALE, count, iter=12, minit="++", seed=4)
    distances = (((frames * SCALE - centre) ** 2).sum(1) for centre in centres)
    return np.stack([frames[np.argmin(distance)] for distance in distances])


def farthest_first(poses: NDArray[np.float32]) -> list[int]:
    """An order of poses whose every prefix covers them: each is the farthest from those before.

    Begins with the strongest pose.
    """
    order = [int(np.argmax((poses * SCALE).sum(1)))]
    nearest = np.full(len(poses), np.inf)
    while len(order) < len(poses):
        nearest = np.minimum(nearest, (((poses - poses[order[-1]]) * SCALE) ** 2).sum(1))
        nearest[order] = -1
        order.append(int(np.argmax(nearest)))
    return order


def main() -> None:
    """Write WORK/poses.npy and say how near they come to the speech."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=400)
    args = parser.parse_args()
    frames = training_frames(args.work / "speech" / "corpus")
    chosen = medoids(frames, args.count)
    poses = chosen[farthest_first(chosen)].astype(np.float32)
    np.save(args.work / "poses.npy", poses)
    spread = np.sqrt(((frames[:2000, None] - poses[None]) ** 2 * SCALE**2).sum(2).min(1))
    print(f"{len(poses)} poses; a frame lies {spread.mean():.3f} from the nearest on average")


if __name__ == "__main__":
    main()
