# SPDX-License-Identifier: Apache-2.0
"""LiveTalking's kinds of avatars: folders of one look, with boxes in two orders.

Avatars of wav2lip have (y1, y2, x1, x2), those of ultralight and MuseTalk (x1, y1, x2, y2). Four
numbers alone do not tell: of an upright picture both may be boxes within the frame. What tells are
the files that only one kind has, then the pictures of the faces that the boxes hold, then the shape
that a face has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.face_check import far_from
from lipsync_fast.avatars.importing.pictures import numbered_pictures, read_picture
from lipsync_fast.avatars.importing.rectangles import LEAST_SIDE
from lipsync_fast.avatars.importing.videos import FAR
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.geometry import Rect

FACES = "face_imgs"
ULTRALIGHT_WEIGHTS = "ultralight.pth"
MUSETALK_FILES = ("latents.pt", "mask_coords.pkl", "avator_info.json")
ULTRALIGHT_FACE = 168
"""Side of an ultralight avatar's face pictures; wav2lip's have 96 or 256."""
_LOOKED_AT = 5
_NARROW, _WIDE = 0.5, 1.25
"""Width over height between which a face's box lies: detectors give 0.6 to 1.05."""
Boxes = NDArray[np.float64]

_WHY = {
    "MuseTalk": "its network is a diffusion model's that hears Whisper features, which is not"
    " supported",
    "ultralight": "its network hears HuBERT features (16 x 32 x 32) instead of mel bands, and that"
    " audio front end is not supported",
}


def refuse_other_kinds(path: Path) -> None:
    """By the files that only other kinds have.

    Raises:
        AvatarImportError: says what it is, and why not.
    """
    if (path / ULTRALIGHT_WEIGHTS).exists():
        raise _refusal(path, "ultralight", f"by {ULTRALIGHT_WEIGHTS}")
    found = [name for name in MUSETALK_FILES if (path / name).exists()]
    if found:
        raise _refusal(path, "MuseTalk", f"by {', '.join(found)}")


def refuse_other_order(path: Path, files: Sequence[Path], given: Boxes) -> None:
    """By what the boxes hold.

    Args:
        files: the frames.
        given: a box for each, x1, y1, x2, y2, as read in wav2lip's order.

    Raises:
        AvatarImportError: they are of the other order; says which kind has that.
    """
    other = given[:, [1, 3, 0, 2]]
    first, _ = read_picture(files[0], path)
    height, width = first.shape[:2]
    if not _inside(other, width, height).any():
        return
    order = "its boxes are (x1, y1, x2, y2), not wav2lip's (y1, y2, x1, x2)"
    faces = _faces(path, len(files))
    if faces:
        near, own_far, side = _compared(path, files, faces, given, other)
        if near <= FAR < own_far:
            kind = "ultralight" if side == ULTRALIGHT_FACE else "MuseTalk"
            raise _refusal(path, kind, f"by {FACES}: {order}")
        if near != own_far:
            return
    shaped, other_shaped = (_faced(boxes, width, height).mean() for boxes in (given, other))
    if shaped < 0.5 and other_shaped > 0.9:
        raise _refusal(path, "MuseTalk", f"by the shape of its faces: {order}")


def _refusal(path: Path, kind: str, how: str) -> AvatarImportError:
    return AvatarImportError(f"{path}: a LiveTalking {kind} avatar ({how}); {_WHY[kind]}")


def _faces(path: Path, count: int) -> list[Path]:
    try:
        found = numbered_pictures(path / FACES)
    except AvatarImportError:
        return []
    return found if len(found) == count else []


def _compared(
    path: Path, files: Sequence[Path], faces: Sequence[Path], given: Boxes, other: Boxes
) -> tuple[float, float, int]:
    """How far the faces are from the boxes of the other order, and of wav2lip's; their side."""
    near, far, side = [], [], 0
    for i in sorted({int(i) for i in np.linspace(0, len(files) - 1, _LOOKED_AT)}):
        try:
            face, picture = read_picture(faces[i], path)[0], read_picture(files[i], path)[0]
        except AvatarImportError:
            continue
        side = face.shape[1]
        near.append(_far(face, picture, other[i]))
        far.append(_far(face, picture, given[i]))
    if not near:
        return 0.0, 0.0, 0
    return float(np.median(near)), float(np.median(far)), side


def _far(face: NDArray[np.uint8], picture: NDArray[np.uint8], box: NDArray[np.float64]) -> float:
    height, width = picture.shape[:2]
    if not _inside(box[None], width, height).all():
        return 255.0
    return far_from(face, picture, Rect.from_corners(*(int(v) for v in box)))


def _inside(boxes: Boxes, width: int, height: int) -> NDArray[np.bool_]:
    x1, y1, x2, y2 = boxes.T
    room = (x2 - x1 >= LEAST_SIDE) & (y2 - y1 >= LEAST_SIDE)
    within: NDArray[np.bool_] = room & (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
    return within


def _faced(boxes: Boxes, width: int, height: int) -> NDArray[np.bool_]:
    """Which boxes lie in the frame and have the shape of a face."""
    inside = _inside(boxes, width, height)
    x1, y1, x2, y2 = boxes.T
    shape = (x2 - x1) / np.where(inside, y2 - y1, 1)
    shaped: NDArray[np.bool_] = inside & (shape >= _NARROW) & (shape <= _WIDE)
    return shaped
