# SPDX-License-Identifier: Apache-2.0
"""How fast ``avatar prepare`` goes through a video, and what takes the time.

    python bench/prepare_speed.py [--frames 500] [--side 512] [--rounds 3] [--out FILE]

The film is made here: the demo avatar's frames, cut out around the face (enlarged for a --side of
more than 720), as H.264 with a tone. The command is run from start to end, in a folder of its own
each time: frames a second, and processor time of all its processes and threads for a frame. Then
each step is measured by itself, in one thread, on the same film. Wall time says something on an
idle machine alone; processor time on a busy one too, though there a core's two threads share it.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prepared_avatars import write_video

from lipsync_fast.avatars.jpeg import encode_image
from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.media.video import Video
from lipsync_fast.prepare.face_nets import FaceNets, square_of
from lipsync_fast.prepare.look import small_grey
from lipsync_fast.prepare.mesh_detector import MeshDetector
from lipsync_fast.prepare.request import QUALITY

SAID = ("--synthetic", "--licence", "CC0-1.0", "--stated-by", "bench")
FEW = 100


def cut_out(picture: NDArray[np.uint8], middle: tuple[int, int], side: int) -> NDArray[np.uint8]:
    """A square around the face."""
    whole = min(side, *picture.shape[:2])
    x = int(np.clip(middle[0] - whole // 2, 0, picture.shape[1] - whole))
    y = int(np.clip(middle[1] - whole // 2, 0, picture.shape[0] - whole))
    part = Image.fromarray(picture[y : y + whole, x : x + whole])
    return np.asarray(part if whole == side else part.resize((side, side)))


def film(path: Path, frames: int, side: int) -> None:
    """The demo avatar, there and back, with a tone."""
    times = np.arange(640 * frames) / 16_000
    tone = np.round(8000 * np.sin(2 * np.pi * 220 * times)).astype(np.int16)
    with AvatarPackage.open(shipped_folder() / "demo.lsa") as package:
        x1, y1, x2, y2 = package.rect(0).corners
        last = package.manifest.frame_count - 1
        there_and_back = (last - abs(last - i % (2 * last)) if last else 0 for i in range(frames))
        middle = (x1 + x2) // 2, (y1 + y2) // 2 - 40
        parts = (cut_out(package.picture(k), middle, side) for k in there_and_back)
        write_video(path, parts, (side, side), tone, crf=20)


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def whole_run(video: Path, out: Path) -> tuple[float, float]:
    """Wall and processor seconds of the command."""
    wall, cpu = time.monotonic(), children_s()
    command = ["avatar", "prepare", video, "--out", out, "--quiet", *SAID]
    subprocess.run([sys.executable, "-m", "lipsync_fast", *map(str, command)], check=True)
    return time.monotonic() - wall, children_s() - cpu


def each_ms(step: Callable[[Any], object], items: list[Any]) -> float:
    """Processor time for one, the median of five rounds, in ms."""
    rounds = []
    for _ in range(5):
        begun = time.process_time()
        for item in items:
            step(item)
        rounds.append(1e3 * (time.process_time() - begun) / len(items))
    return round(statistics.median(rounds), 3)


def steps(video: Path) -> dict[str, float]:
    """Of each step alone, for a frame, in ms of one thread."""
    with Video(video) as opened:
        begun = time.process_time()
        pictures = [p.rgb for p in opened.pictures(limit=FEW) if p.rgb is not None]
        decoded = 1e3 * (time.process_time() - begun) / len(pictures)
    detector, nets = MeshDetector(), FaceNets()
    begun = time.process_time()
    points = detector.detect(pictures, 0)
    followed = 1e3 * (time.process_time() - begun) / len(pictures)
    images = [Image.fromarray(rgb) for rgb in pictures[:40]]
    square, how = square_of(points[0]), FrameJpeg(quality=QUALITY)
    return {
        "decoded, as RGB": round(decoded, 3),
        "faces found and followed": round(followed, 3),
        "of it: one mesh": each_ms(lambda image: nets.mesh(image, square), images),
        "faces looked for in the whole picture": each_ms(
            lambda image: next(nets.faces(image), None), images
        ),
        "coded as JPEG": each_ms(lambda image: encode_image(image, how), images),
        "small and grey": each_ms(small_grey, images),
    }


def main() -> int:
    """Measure and print."""
    args = program.options(__doc__, frames=500, side=512, rounds=3, out=None)
    folder = Path(tempfile.mkdtemp())
    try:
        video = folder / "film.mp4"
        film(video, args.frames, args.side)
        runs = [whole_run(video, folder / f"out{i}") for i in range(args.rounds)]
        found = {
            "frames": args.frames,
            "side": args.side,
            "load": round(os.getloadavg()[0], 1),
            "frames_per_s": [round(args.frames / wall, 1) for wall, _ in runs],
            "cpu_ms_per_frame": [round(1e3 * cpu / args.frames, 2) for _, cpu in runs],
            "steps_ms": steps(video),
        }
        for name, value in found.items():
            print(f"{name}: {value}")
        program.keep(args.out, **found)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
