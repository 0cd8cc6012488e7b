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
from scipy.cluster.vq import kmeans2

SCALE = np.array([3.0, 2.0, 1.2, 1.2, 1.0, 1.3, 1.5, 0.7])
"""How much one unit of each control shows."""


def main() -> None:
    """Write WORK/poses.npy, in an order whose every prefix covers the space."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=400)
    args = parser.parse_args()
    corpus = args.work / "speech" / "corpus"
    names = [e["name"] for e in json.loads((corpus / "index.json").read_text()) if e["split"] == "train"]
    controls = np.concatenate([np.load(corpus / f"{n}.npz")["controls"] for n in names])
    rng = np.random.RandomState(3)
    some = controls[rng.permutation(len(controls))[:20000]]
    centres, _ = kmeans2(some * SCALE, args.count, iter=12, minit="++", seed=4)
    medoids = np.stack([some[np.argmin(((some * SCALE - c) ** 2).sum(1))] for c in centres])
    order = [int(np.argmax((medoids * SCALE).sum(1)))]
    nearest = np.full(len(medoids), np.inf)
    while len(order) < len(medoids):  # farthest point first
        nearest = np.minimum(nearest, (((medoids - medoids[order[-1]]) * SCALE) ** 2).sum(1))
        nearest[order] = -1
        order.append(int(np.argmax(nearest)))
    poses = medoids[order].astype(np.float32)
    np.save(args.work / "poses.npy", poses)
    spread = np.sqrt(((some[:2000, None] - poses[None]) ** 2 * SCALE**2).sum(2).min(1))
    print(f"{len(poses)} poses; a frame lies {spread.mean():.3f} from the nearest on average")


if __name__ == "__main__":
    main()
