# SPDX-License-Identifier: Apache-2.0
"""Make README's picture: a row of frames of the shipped avatar speaking the shipped recording.

    python tools/make_demo_picture.py [docs/images/demo.jpg]

The frames are the product's own, cut to the head, at their full size.
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


def main(out: Path) -> None:
    """Render the recording and write the picture."""
    cuts = []
    with lipsync_fast.open("demo", backend="cpu") as avatar:
        synthetic = avatar.manifest.synthetic
        x1, y1, x2, _ = avatar.package.rect(0).corners
        middle, top = (x1 + x2) // 2, y1
        for frame in avatar.render(demo_recording()):
            if frame.index in FRAMES:
                part = frame.image[top - ABOVE : top + BELOW, middle - AROUND : middle + AROUND]
                cuts.append(part)
            if frame.index >= FRAMES[-1]:
                break
    data = io.BytesIO()
    Image.fromarray(np.concatenate(cuts, axis=1)).save(data, "JPEG", quality=QUALITY)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(jpeg_with_xmp(data.getvalue(), xmp_packet(synthetic)))
    print(f"{out}: {len(cuts)} frames, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else root / "docs" / "images" / "demo.jpg")
