# SPDX-License-Identifier: Apache-2.0
"""Pictures of a folder from a stranger, and what a parsing map says of them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lipsync_fast.errors import AvatarImportError, words_of
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.files import read_file
from lipsync_fast.untrusted.lookalikes import refused_as

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")


def is_number(text: str) -> bool:
    """Whether a file's name is a number as Python reads it."""
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
        if path.suffix.lower() in PICTURE_ENDINGS and is_number(path.stem):
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
        raise AvatarImportError(f"{path}: is not a JPEG or PNG picture{refused_as(path)}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise AvatarImportError(
            f"{path}: cannot be read as a picture ({words_of(error)})"
        ) from None


def keep_mask(parsing: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a parsing map (RGB) keeps the original: pure red or white."""
    red = np.all(parsing == (255, 0, 0), axis=2)  # (0, 0, 255) in the BGR order of the reference
    keep: NDArray[np.bool_] = red | np.all(parsing == 255, axis=2)
    return keep
