# SPDX-License-Identifier: Apache-2.0
"""From videos to twenty avatars that are served together: does one cost less than twenty?

    python bench/prepared_avatars.py --out bench/results/run/prepared-avatars.json

1. Makes 21 short videos with sound, and the landmarks of each: windows of the demo avatar's frames,
   each of another place, size and colour. One of the videos is cut off after its first bytes.
2. Prepares all of them by one ``lipsync-fast avatar prepare``, as a user would.
3. Packs each of the twenty that came out with networks of its own. They are not trained: every one
   has other random weights, which cost what trained ones cost; the audio encoder is one for all, as
   it is for trained ones.
4. Serves them: clients that come, speak once and go, of one avatar, and of all in turn.

Steps 3 and 4 are done for the demo avatar's size of network, and for the reference's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.measure import server
from lipsync_fast.benchmark.reference import REGION, WIDTH, reference_networks
from lipsync_fast.benchmark.rows import Row
from lipsync_fast.benchmark.run import VISIT_S, commit
from lipsync_fast.benchmark.speech import shipped_recording
from lipsync_fast.benchmark.sweeps import rounds_in_turn
from lipsync_fast.prepare.folder import PreparedAvatar, pack_prepared
from lipsync_fast.timing import FRAME_SAMPLES

VIDEOS, BROKEN = 21, 10
FRAMES = 50
SIZE = 640, 360
SIZES = {"the demo avatar's": (16, 256), "the reference's": (WIDTH, REGION)}
"""Width and region of the networks."""
ENGINE = "engine-1"

Rgb = NDArray[np.uint8]


# ---------------------------------------------------------------- videos
def write_videos(folder: Path) -> list[str]:
    """The videos, and ``found/NAME.npy`` for each; returns their names."""
    (folder / "found").mkdir()
    sound = shipped_recording()
    names = []
    with AvatarPackage.open(AvatarLibrary().find("demo")) as demo:
        for number in range(VIDEOS):
            name = f"person{number:02d}"
            pictures, points = _seen(demo, number)
            from_sample = number * FRAME_SAMPLES * 5
            pcm = np.resize(sound[from_sample:], FRAMES * FRAME_SAMPLES)
            write_video(folder / f"{name}.mp4", pictures, SIZE, pcm)
            np.save(folder / "found" / f"{name}.npy", points)
            names.append(f"{name}.mp4")
    broken = folder / names[BROKEN]
    broken.write_bytes(broken.read_bytes()[:2000])
    return names


def _seen(demo: AvatarPackage, number: int) -> tuple[list[Rgb], NDArray[np.float32]]:
    """Frames and landmarks (left, top, right: N x 3 x 2) of one of the people."""
    width = 704 + 12 * number
    height = width * SIZE[1] // SIZE[0]
    place = np.random.default_rng(number)
    seen = [demo.rect((number + k) % demo.manifest.frame_count) for k in range(FRAMES)]
    rects = np.array([rect.corners for rect in seen])
    left = int(place.integers(max(0, rects[:, 2].max() + 20 - width), rects[:, 0].min() - 20))
    low, high = max(0, rects[:, 3].max() + 20 - height), rects[:, 1].min() - 20
    top = int(place.integers(low, high))
    gain = place.uniform(0.8, 1.1, 3)
    pictures = []
    for k in range(FRAMES):
        cut = demo.picture((number + k) % demo.manifest.frame_count)[
            top : top + height, left : left + width
        ]
        small = np.asarray(Image.fromarray(cut).resize(SIZE, Image.Resampling.LANCZOS))
        pictures.append((small * gain).clip(0, 255).astype(np.uint8))
    x1, y1, x2, _ = ((rects - [left, top, left, top]) * SIZE[0] / width).T
    ears = y1 + (x2 - x1) / 4
    points = np.array([[x1, ears], [(x1 + x2) / 2, y1], [x2, ears]], np.float32)
    return pictures, points.transpose(2, 0, 1)


def write_video(
    path: Path,
    pictures: Iterable[Rgb],
    size: tuple[int, int],
    pcm: NDArray[np.int16],
    crf: int = 16,
) -> None:
    """Pictures of that width and height, 25 a second, as H.264, and sound at 16 kHz as AAC."""
    with av.open(f"file:{path}", "w") as file:
        video = file.add_stream("libx264", rate=25)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.options = {"crf": str(crf)}
        audio = file.add_stream("aac", rate=16_000)
        audio.layout = "mono"
        for picture in pictures:
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(video.encode())
        for start in range(0, len(pcm), 1024):
            piece = av.AudioFrame.from_ndarray(
                pcm[None, start : start + 1024], format="s16", layout="mono"
            )
            piece.sample_rate, piece.pts = 16_000, start
            file.mux(audio.encode(piece))
        file.mux(audio.encode())


# ---------------------------------------------------------------- prepared
def prepare(folder: Path, names: list[str]) -> dict[str, Any]:
    """All in one command; what came of it."""
    told = ["--landmarks", "found", "--synthetic", "--licence", "Apache-2.0", "--json"]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lipsync_fast", "avatar", "prepare", *names, *told],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    wall = time.monotonic() - begun
    said = json.loads(done.stdout)
    expected = [name.removesuffix(".mp4") for name in names if name != names[BROKEN]]
    made = [one["name"] for one in said["prepared"]]
    if done.returncode != 2 or made != expected:
        raise SystemExit(f"avatar prepare ended with {done.returncode} and made {made}")
    return {
        "command": f"lipsync-fast avatar prepare {names[0]} … {names[-1]} {' '.join(told)}",
        "videos": len(names),
        "frames": FRAMES,
        "size": SIZE,
        "prepared": len(made),
        "failed": said["failed"],
        "exit_status": done.returncode,
        "wall_s": round(wall, 1),
    }


# ---------------------------------------------------------------- packed
def packages(folder: Path, dest: Path, width: int, region: int) -> dict[str, str]:
    """A package of each prepared folder, none with the weights of another; name to path."""
    import torch

    from lipsync_fast.models.export import export_audio_encoder, export_unet

    networks = reference_networks(width, region)
    encoder = export_audio_encoder(networks.audio_encoder)
    first = {name: value.clone() for name, value in networks.unet.state_dict().items()}
    paths = {}
    for number, prepared in enumerate(sorted(folder.iterdir())):
        chance = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, value in networks.unet.named_parameters():
                own = 1 + 0.01 * torch.randn(value.shape, generator=chance)
                value.copy_(first[name] * own)
        image, decoder = export_unet(networks.unet)
        models = {"audio_encoder": encoder, "image": image, "decoder": decoder}
        with PreparedAvatar.open(prepared) as one:
            path = dest / f"{prepared.name}.lsa"
            pack_prepared(one, path, models, width=width, region=region)
        paths[prepared.name] = str(path)
    return paths


# ---------------------------------------------------------------- served
def serve(paths: dict[str, str], seconds: float, rounds: int, tell: Callable[[str], None]) -> Any:
    """One in turn against all; the rows, and what they come to."""
    names = list(paths)
    config: dict[str, Any] = {
        "engines": {"spares": 0},
        "live": {"speakers": 1000},
        "avatars": {"folders": [str(Path(paths[names[0]]).parent)], "default": names[0]},
    }
    pcm = shipped_recording(VISIT_S)
    with server(**config) as running:
        found = rounds_in_turn(running, pcm, seconds, rounds, paths, (1, len(paths)), tell)
        rows = list(found)
    return {"rows": msgspec.to_builtins(rows), **outcome(rows, len(paths))}


def outcome(rows: list[Row], count: int) -> dict[str, Any]:
    """Speed of all against one in each round; memory of the engine for each further avatar."""
    one, many = rows[0::2], rows[1::2]
    shares = [round(b.frames_per_s / a.frames_per_s, 4) for a, b in zip(one, many, strict=True)]
    grown = many[0].private_mb[ENGINE] - one[0].private_mb[ENGINE]
    shared = many[0].shared_mb[ENGINE] - one[0].shared_mb[ENGINE]
    return {
        "avatars": count,
        "share": shares,
        "share_median": statistics.median(shares),
        "private_mb_each": round(grown / (count - 1), 1),
        "shared_mb_each": round(shared / (count - 1), 1),
        "right": all(row.is_right for row in rows),
    }


def sizes(folder: Path, args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each size of network in turn."""
    for name, (width, region) in SIZES.items():
        dest = folder / f"width{width}"
        dest.mkdir()
        print(f"packing with networks of {name} size")
        paths = packages(folder / "prepared", dest, width, region)
        found = serve(paths, args.seconds, args.rounds, lambda what: print(f"  {what}"))
        size = {"width": width, "region": region, "weights": "random, of each avatar others"}
        yield name, size | found


def main() -> int:
    """Measure, say, write."""
    args = program.options(__doc__, seconds=8.0, rounds=3, out=None)
    with tempfile.TemporaryDirectory(prefix="prepared-avatars-") as name:
        folder = Path(name)
        names = write_videos(folder)
        print(f"{VIDEOS} videos of {FRAMES} frames, one of them broken")
        prepared = prepare(folder, names)
        found = dict(sizes(folder, args))
    for size, each in found.items():
        print(
            f"{size} size of network: {each['avatars']} avatars at"
            f" {each['share_median']:.1%} of one's speed; {each['private_mb_each']} MB of the"
            f" engine's own and {each['shared_mb_each']} MB shared for each further one"
        )
    when = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit()}
    program.keep(args.out, **when, prepare=prepared, networks=found)
    return 0 if all(each["right"] for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
