# SPDX-License-Identifier: Apache-2.0
"""Make README's pictures: frames of the shipped avatars speaking the shipped recording.

    python tools/make_demo_picture.py [docs/images] [NAME...]

Of each a row of frames, NAME.jpg, and beside it an animation of the first seconds, NAME.webp. The
frames are the product's own, cut to the head, at their full size; the animation's are halved.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import lipsync_fast
from lipsync_fast.cli.demo import demo_recording
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet

FRAMES = (3, 42, 63, 90, 156)
"""At rest, and speaking: different openings, and a closed m."""
AROUND, ABOVE, BELOW = 200, 300, 240
"""What is cut out: so much around the face square's middle, above and below its upper edge."""
QUALITY = 88
ANIMATED, MOVING_QUALITY = 170, 70
"""Frames of the animation."""


def write_pictures(name: str, out: Path) -> None:
    """Render the recording and write an avatar's row, and its animation."""
    cuts, moving = [], []
    with lipsync_fast.open(name, backend="cpu") as avatar:
        synthetic = avatar.manifest.synthetic
        x1, y1, x2, _ = avatar.package.rect(0).corners
        middle, top = (x1 + x2) // 2, y1
        for frame in avatar.render(demo_recording()):
            part = frame.image[top - ABOVE : top + BELOW, middle - AROUND : middle + AROUND]
            if frame.index in FRAMES:
                cuts.append(part)
            moving.append(Image.fromarray(np.ascontiguousarray(part)).reduce(2))
            if frame.index + 1 >= ANIMATED:
                break
    data = io.BytesIO()
    Image.fromarray(np.concatenate(cuts, axis=1)).save(data, "JPEG", quality=QUALITY)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(jpeg_with_xmp(data.getvalue(), xmp_packet(synthetic)))
    print(f"{out}: {len(cuts)} frames, {out.stat().st_size / 1000:.0f} kB")
    animation = out.with_suffix(".webp")
    moving[0].save(
        animation,
        save_all=True,
        append_images=moving[1:],
        duration=40,
        loop=0,
        quality=MOVING_QUALITY,
        xmp=xmp_packet(synthetic),
    )
    print(f"{animation}: {len(moving)} frames, {animation.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "docs" / "images"
    for shown in sys.argv[2:] or ("demo", "ben"):
        write_pictures(shown, folder / f"{shown}.jpg")
