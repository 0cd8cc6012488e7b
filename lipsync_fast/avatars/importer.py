# SPDX-License-Identifier: Apache-2.0
"""Import avatars that were made with SyncTalk_2D (needs the extra ``train`` for its checkpoints).

A data set is a folder with ``full_body_img/{i}.jpg``, ``landmarks/{i}.lms`` (110 lines "x y") and
optionally ``parsing/{i}.png``; its checkpoint lies at ``../../checkpoint/NAME/{epoch}.pth`` or is
named; the audio encoder is a file that all avatars share.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lipsync_fast.avatars import limits
from lipsync_fast.avatars.manifest import AudioWindow, Manifest
from lipsync_fast.avatars.reading import read_file
from lipsync_fast.avatars.writer import AvatarWriter
from lipsync_fast.errors import AvatarFormatError, AvatarImportError, BackendError

LANDMARKS = 110
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")
ENCODER_NAMES = ("audio_visual_encoder.pth", "audio_encoder.pth")
Progress = Callable[[int, int], None]


def read_landmarks(path: Path, root: Path | None = None) -> NDArray[np.int64]:
    """The 110 points of a .lms file, 110 x 2, read as float32 and truncated.

    Args:
        root: a resolved folder that the file must lie in, wherever links lead.

    Raises:
        AvatarImportError: names the file and the line.
    """
    try:
        data = read_file(path, "landmarks", limits.LANDMARK_BYTES, root)
    except FileNotFoundError:
        raise AvatarImportError(f"{path}: missing; every frame needs its landmarks") from None
    text = data.decode("ascii", "backslashreplace")
    points: list[tuple[float, float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            x, y = (float(v) for v in line.split())
        except ValueError:
            raise AvatarImportError(
                f'{path}, line {number}: expected "x y", got {line[:60]!r}'
            ) from None
        if not (math.isfinite(x) and math.isfinite(y)) or max(abs(x), abs(y)) > 1e6:
            raise AvatarImportError(f"{path}, line {number}: {line[:60]!r} is not a pixel position")
        points.append((x, y))
    if len(points) != LANDMARKS:
        raise AvatarImportError(
            f"{path}, line {len(points)}: {len(points)} landmarks, expected {LANDMARKS}"
        )
    return np.array(points, np.float32).astype(np.int64)


def crop_rectangle(
    points: NDArray[np.int64], width: int, height: int, where: str
) -> tuple[int, int, int, int]:
    """The face crop of the reference, clipped to the frame: x1, y1, x2, y2.

    x from landmark 1 to landmark 31, y from landmark 52 on, square.

    Raises:
        AvatarImportError: the landmarks span nothing inside the frame.
    """
    x1, y1, x2 = int(points[1, 0]), int(points[52, 1]), int(points[31, 0])
    y2 = y1 + (x2 - x1)
    inside = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
    if inside[2] - inside[0] < 8 or inside[3] - inside[1] < 8:
        raise AvatarImportError(
            f"{where}: the face crop ({x1}, {y1}) to ({x2}, {y2}) has no room in the"
            f" {width} x {height} frame (landmarks 1, 31 and 52)"
        )
    return inside


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def numbered_pictures(folder: Path) -> list[Path]:
    """``0.jpg`` .. ``{n-1}.jpg`` (or .png) of a folder, in order.

    Raises:
        AvatarImportError: none, or a number is missing or there twice.
    """
    if not folder.is_dir():
        raise AvatarImportError(f"{folder}: missing; expected a folder with 0.jpg, 1.jpg …")
    found: dict[int, Path] = {}
    for path in folder.iterdir():
        if path.suffix.lower() in PICTURE_ENDINGS and _is_number(path.stem):
            if int(path.stem) in found:
                raise AvatarImportError(f"{path}: frame {int(path.stem)} is there twice")
            found[int(path.stem)] = path
    if not found:
        raise AvatarImportError(f"{folder}: holds no 0.jpg, 1.jpg …")
    for i in range(max(found) + 1):
        if i not in found:
            raise AvatarImportError(f"{folder / f'{i}.jpg'}: missing; frames go up to {max(found)}")
    return [found[i] for i in range(len(found))]


def read_picture(path: Path, root: Path | None = None) -> tuple[NDArray[np.uint8], bytes]:
    """A picture as H x W x 3 uint8 RGB, and its file's bytes.

    Args:
        root: a resolved folder that the file must lie in, wherever links lead.

    Raises:
        AvatarImportError: missing, damaged or too large.
    """
    try:
        data = read_file(path, "a picture", limits.PICTURE_BYTES, root)
        with warnings.catch_warnings(action="ignore"):  # of large ones; the next line refuses them
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        with image:
            if image.width * image.height > limits.FRAME_PIXELS:
                size = f"{image.width} x {image.height}"
                raise AvatarImportError(f"{path}: {size}, more than {limits.FRAME_PIXELS} pixels")
            if image.format == "JPEG" and data.count(b"\xff\xda") > limits.SCANS:
                raise AvatarImportError(f"{path}: a JPEG of more than {limits.SCANS} scans")
            return np.asarray(image.convert("RGB")), data
    except UnidentifiedImageError:  # its own words name an object in memory
        raise AvatarImportError(f"{path}: is not a JPEG or PNG picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise AvatarImportError(f"{path}: cannot be read as a picture ({error})") from None


def keep_mask(parsing: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a parsing map (RGB) keeps the original: pure red or white."""
    red = np.all(parsing == (255, 0, 0), axis=2)  # (0, 0, 255) in the BGR order of the reference
    keep: NDArray[np.bool_] = red | np.all(parsing == 255, axis=2)
    return keep


def find_checkpoint(dataset: Path) -> Path:
    """The highest-numbered checkpoint of a data set.

    Raises:
        AvatarImportError: lists where it was looked for.
    """
    folders = [dataset.parent.parent / "checkpoint" / dataset.name, dataset / "checkpoint"]
    for folder in folders:
        epochs = [p for p in folder.glob("*.pth") if _is_number(p.stem)] if folder.is_dir() else []
        if epochs:
            return max(epochs, key=lambda p: int(p.stem))
    looked = ", ".join(str(f / "{epoch}.pth") for f in folders)
    raise AvatarImportError(f"no checkpoint found at {looked}; name one with --checkpoint")


def find_audio_encoder(dataset: Path, checkpoint: Path) -> Path:
    """The audio encoder's file, near the checkpoint or the data set.

    Raises:
        AvatarImportError: lists where it was looked for.
    """
    root = dataset.parent.parent
    folders = [
        checkpoint.parent,
        checkpoint.parent.parent,
        dataset,
        root / "model" / "checkpoints",
        root,
    ]
    for folder in folders:
        for name in ENCODER_NAMES:
            if (folder / name).is_file():
                return folder / name
    looked = ", ".join(dict.fromkeys(str(f) for f in folders))
    raise AvatarImportError(
        f"no {' or '.join(ENCODER_NAMES)} in {looked}; name one with --audio-encoder"
    )


def import_synctalk(
    path: Path,
    avatars: Path,
    *,
    name: str | None = None,
    checkpoint: Path | None = None,
    audio_encoder: Path | None = None,
    licence: str = "",
    consent: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Import a SyncTalk_2D data set with its weights; returns the new package's folder.

    Args:
        path: the data set's folder.
        avatars: where the package is written, as ``avatars/name``.
        name: the avatar's name; the folder's by default.
        checkpoint: the U-Net's weights; by default the highest epoch that is found.
        audio_encoder: the audio encoder's weights; by default looked for near the checkpoint.
        progress: called with (frames done, frames in all).

    Raises:
        AvatarImportError: a part is missing or wrong; names the file (and line).
        CheckpointError: weights that are hostile, damaged or of another family.
        OutputError: the package is there already, or cannot be written.
        BackendError: torch or onnx is not installed.
    """
    try:
        from lipsync_fast.models.checkpoints import load_audio_encoder, load_unet
        from lipsync_fast.models.export import export_audio_encoder, export_unet
    except ImportError as error:
        raise BackendError(
            f"importing checkpoints needs the extra 'train' ({error.name} is not installed):"
            " pip install 'lipsync-fast[train]'"
        ) from None
    if not path.is_dir():
        raise AvatarImportError(f"{path}: no such folder")
    path = path.resolve()
    pictures = numbered_pictures(path / "full_body_img")
    first, _ = read_picture(pictures[0], path)
    height, width = first.shape[:2]
    rects = []  # before the slow parts, so that a wrong line shows at once
    for i in range(len(pictures)):
        landmarks = path / "landmarks" / f"{i}.lms"
        rects.append(crop_rectangle(read_landmarks(landmarks, path), width, height, str(landmarks)))
    weights = checkpoint or find_checkpoint(path)
    unet = load_unet(weights)
    encoder = load_audio_encoder(audio_encoder or find_audio_encoder(path, weights))
    import msgspec

    draft = {
        "name": name or path.name,
        "width": unet.width,
        "region": unet.region,
        "frame_width": width,
        "frame_height": height,
        "frame_count": len(pictures),
        "loop": "pingpong",
        "licence": licence,
        "consent": consent,
        "provenance": f"imported from a SyncTalk_2D data set ({path.name}, {weights.name})",
    }
    try:
        manifest = msgspec.convert({**draft, "audio": AudioWindow()}, Manifest)
    except msgspec.ValidationError as error:
        raise AvatarImportError(f"{path}: cannot become an avatar: {error}") from None
    with AvatarWriter(avatars / manifest.name, manifest, overwrite=overwrite) as writer:
        for i, (file, rect) in enumerate(zip(pictures, rects, strict=True)):
            picture, source = read_picture(file, path)
            if picture.shape != first.shape:
                size = f"{picture.shape[1]} x {picture.shape[0]}"
                raise AvatarImportError(f"{file}: {size}, but frame 0 is {width} x {height}")
            parsing = path / "parsing" / f"{i}.png"
            mask = None
            if os.path.lexists(parsing):  # a broken link is no map that was never there
                labels, _ = read_picture(parsing, path)
                if labels.shape != first.shape:
                    size = f"{labels.shape[1]} x {labels.shape[0]}"
                    raise AvatarImportError(f"{parsing}: {size}, but frames are {width} x {height}")
                mask = keep_mask(labels[rect[1] : rect[3], rect[0] : rect[2]])
            try:
                writer.add_frame(picture, rect, mask, source)
            except AvatarFormatError as error:
                raise AvatarImportError(f"{file}: {error}") from None
            if progress is not None:
                progress(i + 1, len(pictures))
        writer.add_model("audio_encoder", export_audio_encoder(encoder))
        image, decoder = export_unet(unet)
        writer.add_model("image", image)
        writer.add_model("decoder", decoder)
        return writer.finish()
