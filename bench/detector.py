# SPDX-License-Identifier: Apache-2.0
"""The detector that ships, on videos of your own: faces missed, jitter, time a frame.

    python bench/detector.py --videos A.mp4 B.mp4 … [--seconds 20] [--sources TEXT] [--out FILE]

A frame is missed where no mesh was laid. Jitter is what a value has over a quadratic through 13
frames around it: of the left and right ends of the face crop and of its upper edge, in pixels and
as a share of the crop's side, the median over frames. Time is the processor's, of finding alone
(not of decoding). Videos are named by letters in the result: it is to say nothing of who is shown;
``--sources`` says where they come from.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.benchmark import program
from lipsync_fast.media.video import Video
from lipsync_fast.prepare.detectors import corners_of
from lipsync_fast.prepare.mesh_detector import MeshDetector
from lipsync_fast.prepare.stabilise import savitzky_golay

BATCH = 20
REACH = 6


def measured(path: Path, seconds: float) -> dict[str, Any]:
    """One video's figures."""
    detector, spent = MeshDetector(), 0.0
    found: list[NDArray[np.float32]] = []
    pictures: list[Any] = []

    def look() -> None:
        nonlocal spent
        detector.follow(found[-1][-1] if found else None)
        begun = time.process_time()
        found.append(detector.detect(pictures, len(found) * BATCH))
        spent += time.process_time() - begun
        pictures.clear()

    with Video(path) as video:
        size = (0, 0)
        for picture in video.pictures(limit=round(seconds * 25)):
            pictures.append(picture.rgb)
            if picture.rgb is not None:
                size = picture.rgb.shape[1], picture.rgb.shape[0]
            if len(pictures) == BATCH:
                look()
    if pictures:
        look()
    points = np.concatenate(found)
    missed = np.isnan(points).any(axis=(1, 2))
    corners = corners_of(points[~missed], None, "mesh")
    side = corners[:, 2] - corners[:, 0]
    jitter = [np.median(np.abs(c - savitzky_golay(c, REACH, 2))) for c in corners.T]
    return {
        "frames": len(points),
        "size": list(size),
        "face": round(float(np.median(side))),
        "missed": int(missed.sum()),
        "missed_at": np.flatnonzero(missed)[:20].tolist(),
        "jitter_px": dict(zip(("left", "top", "right"), np.round(jitter, 3).tolist(), strict=True)),
        "jitter_of_side": round(float(max(jitter) / np.median(side)), 5),
        "cpu_ms_per_frame": round(1e3 * spent / len(points), 2),
        "warnings": len(detector.warnings),
    }


def main() -> int:
    """Measure and print."""
    args = program.options(__doc__, videos=[""], seconds=20.0, sources="", out=None)
    rows = {}
    for letter, path in zip(ascii_uppercase, args.videos, strict=False):
        rows[letter] = row = measured(Path(path), args.seconds)
        print(f"{letter}: {row}", flush=True)
    frames, missed = (sum(row[k] for row in rows.values()) for k in ("frames", "missed"))
    print(f"{missed} of {frames} frames missed: {100 * missed / max(1, frames):.2f}%")
    program.keep(args.out, sources=args.sources, missed=missed, frames=frames, videos=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
