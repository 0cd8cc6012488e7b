# SPDX-License-Identifier: Apache-2.0
"""Make the golden data of ``lipsync-fast doctor`` (lipsync_fast/data/selftest/).

    python tools/make_selftest.py path/to/golden/audio.npz

``mel.npz`` is cut from the reference's own data. ``frames.npz`` is made with the demo avatar, and
tells a user whether an installation gives the pictures that this machine gives.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import lipsync_fast

SAMPLES = 12_800
MEL_ROWS = 1 + (SAMPLES - 400) // 200
"""Rows whose windows end before the cut."""
FRAMES = (2, 8, 14)


def main(golden: Path) -> None:
    """Write both files."""
    out = Path(lipsync_fast.__file__).parent / "data" / "selftest"
    out.mkdir(parents=True, exist_ok=True)
    with np.load(golden, allow_pickle=False) as data:
        whole, mel = data["pcm16k"], data["mel"]
    np.savez_compressed(out / "mel.npz", pcm16k=whole[:SAMPLES], mel=mel[:MEL_ROWS])
    pcm = (whole[:SAMPLES] / 32768).astype(np.float32)
    with lipsync_fast.open("demo", backend="cpu") as avatar:
        x1, y1, x2, y2 = avatar.package.rect(0).corners
        side = min(96, x2 - x1, y2 - y1)
        left, top = (x1 + x2 - side) // 2, y1 + (y2 - y1) // 3 - side // 2
        frames = {f.index: f.image for f in avatar.render(pcm, 16_000) if f.index in FRAMES}
    mouths = np.stack([frames[i][top : top + side, left : left + side] for i in FRAMES])
    np.savez_compressed(
        out / "frames.npz",
        pcm16k=pcm,
        index=np.array(FRAMES),
        mouth=mouths,
        corner=np.array([top, left]),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
