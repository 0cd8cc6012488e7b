# SPDX-License-Identifier: Apache-2.0
"""Put the demo avatar's pictures and networks into a package.

    python pack.py WORK [--dest FILE]
    python pack.py --again FILE [--encoder PTH] [--unet PTH]

Needs dataset.py's output and both trained networks in WORK/out. FILE names the package too; where
nothing else is said, Ada's is the shipped demo.lsa, and Ben's ben.lsa beside it. The package keeps
the frames as JPEG only, and the networks in half precision. ``--again`` exchanges the networks of a
package that exists; all else in it stays as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import sys
import zipfile

import cv2
import msgspec
import numpy as np
import torch
from geometry import Geometry
from layout import LIPS_Y, SPARE
from normless import REGION, reference_network
from numpy.typing import NDArray
from person import ADA
from restore import unet_of
from samples import image_input

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.manifest import FrameJpeg, Manifest, Window
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.writer import AvatarWriter, pack
from lipsync_fast.families.synctalk2d import AUDIO_SHAPE, REGION_BORDER
from lipsync_fast.geometry import Rect
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.checkpoints import load_audio_encoder, load_unet
from lipsync_fast.models.export import export_audio_encoder, export_unet
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.hearing import SILENT

LARGEST = 30_000_000
QUALITY = 92
AUDIO = AudioWindow(before=14, after=2, gain="auto")
"""What its frames see of the sound."""
PROVENANCE = """\
A person who does not exist. The head was rendered with Blender from MakeHuman's base mesh, targets
and materials and from the Face Units pack (all CC0), and the U-Net was trained on these pictures.
The audio encoder was trained on sounds by Allison Smith (Asterisk core sounds, CC BY-SA 3.0,
Digium, Inc.), on readers of LibriSpeech (V. Panayotov, G. Chen, D. Povey, S. Khudanpur; CC BY 4.0)
and on synthetic voices of espeak-ng and flite. Made by tools/demo_avatar of lipsync-fast."""


VISIBLE, AROUND = 9, 7
"""Grey levels, on average over so many pixels square; what changes less, in no picture more, keeps
the frame's own pixels. Single pixels differ by the renderer's noise."""
NOSE = 26
"""Row of the face square above which nothing that speech moves is looked for."""
FADE = 28
"""Pixels around the moving area in which the frames pass from what the network makes of the mouth
at rest to what was rendered: it makes skin softer, and without this its outline could be seen."""
EARS_END = 70
"""Row of the face square down to which its sides, left and right of CHEEKS, keep their pixels."""
CHEEKS = (44, 222)


def moving_area(work: pathlib.Path) -> NDArray[np.uint8]:
    """The convex hull of where the mouth's pictures differ visibly from the mouth at rest: 255
    there, else 0."""
    with np.load(work / "dataset.npz") as data:
        pictures, controls = data["pictures"], data["controls"]
    rest = pictures[np.abs(controls).sum(axis=1).argmin()].astype(np.float32)
    most = np.zeros(rest.shape[:2], np.float32)
    for picture in pictures:
        change = cv2.blur(picture.astype(np.float32) - rest, (AROUND, AROUND))
        most = np.maximum(most, np.abs(change).max(axis=2))
    most[:NOSE] = 0
    area = (most > VISIBLE).astype(np.uint8) * 255
    area = cv2.morphologyEx(area, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    mouth = of_the_mouth(area > 0).astype(np.uint8)
    outlines, _ = cv2.findContours(mouth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    out = np.zeros_like(area)
    cv2.fillConvexPoly(out, cv2.convexHull(np.concatenate(outlines)), 255)
    return cv2.dilate(out, np.ones((7, 7), np.uint8)).astype(np.uint8)


def at_rest(unet: UNet, encoder: AudioEncoder, square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the networks make of a face square (side x side x 3, RGB) in silence: its region."""
    with torch.no_grad():
        silence = torch.full((1, 1, 80, 16), SILENT)
        block = encoder(silence).repeat(16, 1).reshape(1, *AUDIO_SHAPE)
        made = unet(torch.from_numpy(image_input(square))[None], block)[0].numpy()
    picture: NDArray[np.uint8] = np.clip(np.round(made * 255), 0, 255).astype(np.uint8)
    return picture[::-1].transpose(1, 2, 0)


def faded(
    frame: NDArray[np.uint8],
    rect: NDArray[np.int32],
    area: NDArray[np.bool_],
    made: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """A frame that has what the network makes in the moving area, and less and less of it around.

    Args:
        frame: H x W x 3 RGB.
        rect: the face square's corners.
        area: the moving area in it, side x side.
        made: the region, see ``at_rest``.
    """
    away = cv2.distanceTransform((~area).astype(np.uint8), cv2.DIST_L2, 5)
    part = np.clip(1 - away / FADE, 0, 1)
    part = (part * part * (3 - 2 * part))[
        REGION_BORDER:-REGION_BORDER, REGION_BORDER:-REGION_BORDER, None
    ]
    edge = np.minimum.outer(*(_from_edge(n) for n in part.shape[:2]))[..., None]
    part = part * np.clip(
        (edge - REGION_BORDER) / (2 * REGION_BORDER), 0, 1
    )  # nothing was learnt at the edge
    x0, y0, x1, y1 = rect
    inner = np.s_[y0 + REGION_BORDER : y1 - REGION_BORDER, x0 + REGION_BORDER : x1 - REGION_BORDER]
    out = frame.copy()
    out[inner] = np.round(part * made + (1 - part) * frame[inner]).astype(np.uint8)
    return out


def _from_edge(count: int) -> NDArray[np.float64]:
    """Steps to the nearer end of so many places."""
    at = np.arange(count, dtype=np.float64)
    return np.minimum(at, at[::-1])


def moved_masks(area: NDArray[np.uint8], maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The moving area in each frame's face square: frames x side x side."""
    whole = np.pad(area, SPARE)
    moved = [cv2.remap(whole, m[0], m[1], cv2.INTER_LINEAR) > 127 for m in maps]
    return np.stack(moved)


def of_the_mouth(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What speech really moves of a face square's moving area (side x side).

    Beside the ears the rendered mouths differ by noise alone, and there, at the square's edge, the
    network paints worst: up to 60 grey levels beside the right pixel. What is not connected with
    the mouth is noise as well.
    """
    kept = area.astype(np.uint8)
    kept[:EARS_END, : CHEEKS[0]] = kept[:EARS_END, CHEEKS[1] :] = 0
    _, labels = cv2.connectedComponents(kept, connectivity=4)
    out: NDArray[np.bool_] = labels == labels[LIPS_Y, area.shape[1] // 2]
    return out & area


def tuned(work: pathlib.Path, name: str) -> pathlib.Path:
    """A network as tune_hearing.py left it, or as it was before."""
    path = work / "out" / f"{name}-tuned.pth"
    return path if path.exists() else work / "out" / f"{name}.pth"


def packed_encoder(path: pathlib.Path) -> bytes:
    """A trained encoder as the package holds it."""
    return export_audio_encoder(load_audio_encoder(path), half=True)


def pack_again(path: pathlib.Path, encoder: pathlib.Path | None, unet: pathlib.Path | None) -> None:
    """Exchange a packed avatar's networks.

    Frames, masks and window stay as they are, bit for bit; the networks' weights too, unless others
    are given.
    """
    folder = path.with_suffix(".again")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    with AvatarPackage.open(folder) as package:
        manifest = json.loads(bytes(package.member("manifest.json")))
        network = reference_network(unet_of(package)) if unet is None else load_unet(unet, REGION)
    image, decoder = export_unet(network, half=True, window=Rect(**manifest["window"]))
    changed = {"models/image.onnx": image, "models/decoder.onnx": decoder}
    if encoder is not None:
        changed["models/audio_encoder.onnx"] = packed_encoder(encoder)
        manifest["provenance"] = PROVENANCE
    manifest["audio"] = msgspec.to_builtins(AUDIO)
    for name, data in changed.items():
        (folder / name).write_bytes(data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    with AvatarPackage.open(folder) as package:
        package.verify()
    made = path.with_suffix(".made")
    pack(folder, made)
    shutil.rmtree(folder)
    os.replace(made, path)


def window_of(masks: NDArray[np.bool_], region: int) -> Rect:
    """The smallest part of the region that holds every frame's moving area."""
    inner = masks[:, REGION_BORDER:-REGION_BORDER, REGION_BORDER:-REGION_BORDER]
    rows, columns = (np.flatnonzero(inner.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    x, y = int(columns[0]), int(rows[0])
    box = Rect(x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
    return box.grown(0, region)


def main() -> None:
    """Write the package and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path, nargs="?")
    parser.add_argument("--dest", type=pathlib.Path, metavar="FILE", help="the shipped one")
    parser.add_argument("--again", type=pathlib.Path, metavar="FILE", help="a package to change")
    parser.add_argument("--encoder", type=pathlib.Path, metavar="PTH", help="with --again")
    parser.add_argument("--unet", type=pathlib.Path, metavar="PTH", help="with --again")
    args = parser.parse_args()
    if args.again is not None:
        pack_again(args.again, args.encoder, args.unet)
        return
    if args.work is None:
        parser.error("WORK or --again FILE is required")
    person = Geometry(args.work).person
    dest = args.dest or shipped_folder() / f"{'demo' if person is ADA else person.name}.lsa"
    unet = load_unet(tuned(args.work, "unet"), REGION)
    encoder = load_audio_encoder(tuned(args.work, "audio_encoder")).eval()
    with np.load(args.work / "loop.npz") as loop:
        frames, rects, maps = loop["frames"], loop["rects"], loop["maps"]
    moving = moved_masks(moving_area(args.work), maps)
    shown = [
        faded(f, r, a, at_rest(unet, encoder, f[r[1] : r[3], r[0] : r[2]]))
        for f, r, a in zip(frames, rects, moving, strict=True)
    ]
    window = window_of(moving, unet.region)
    image, decoder = export_unet(unet, half=True, window=window)
    models = {
        "audio_encoder": packed_encoder(tuned(args.work, "audio_encoder")),
        "image": image,
        "decoder": decoder,
    }
    manifest = Manifest(
        name=dest.stem,
        width=unet.width,
        region=unet.region,
        window=Window(window.x, window.y, window.width, window.height),
        audio=AUDIO,
        frame_width=frames.shape[2],
        frame_height=frames.shape[1],
        frame_count=len(frames),
        loop="pingpong",
        jpeg=FrameJpeg(quality=QUALITY),
        synthetic=True,
        licence="Apache-2.0",
        provenance=PROVENANCE,
        consent="Not needed: nobody is shown.",
    )
    options = {"keep_pictures": False, "keep_regions": False, "overwrite": True}
    with AvatarWriter(dest, manifest, **options) as writer:
        for name, data in models.items():
            writer.add_model(name, data)
        for frame, rect, area in zip(shown, rects, moving, strict=True):
            writer.add_frame(frame, Rect.from_corners(*(int(v) for v in rect)), mask=~area)
        path = writer.finish()
    with AvatarPackage.open(path) as package:
        package.verify()
    size = path.stat().st_size
    print(f"{path}: {size / 1e6:.1f} MB, {window}")
    if size > LARGEST:
        sys.exit(f"larger than {LARGEST / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
