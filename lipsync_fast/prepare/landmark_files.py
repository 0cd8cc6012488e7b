# SPDX-License-Identifier: Apache-2.0
"""Landmarks from files: a folder of ``{i}.lms`` as SyncTalk_2D writes them, or one array.

Frame i is the one at ``i / 25`` seconds of the video. Coordinates are pixels of the picture as it
is shown (turned as the file asks for). A frame without a file, or with NaN, has no face.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.landmarks import LANDMARKS, read_landmarks
from lipsync_fast.errors import PrepareError, words_of
from lipsync_fast.prepare.detectors import MOST_POINTS
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.lookalikes import refused_as

MOST_FRAMES = 1_000_000
MOST_BYTES = 512 << 20
"""Most of an array in a compressed file, which must be unpacked whole."""
MOST_STORED = 2 << 30
"""Most of an array in a file: an hour of 478 points has 1 GB. All of it is read once."""
_KEY = "landmarks"


def find_landmarks(given: Path, stem: str, *, alone: bool) -> Path:
    """The landmarks of the video ``stem``: in the folder ``given`` by name, or ``given`` itself.

    Args:
        alone: one video only is prepared, so that ``given`` may be its landmarks themselves.

    Raises:
        PrepareError: says where they were looked for.
    """
    if not given.exists():
        raise PrepareError(f"{given}: no such file or folder of landmarks")
    if given.is_dir():
        for path in (given / stem, given / f"{stem}.npy", given / f"{stem}.npz"):
            if path.exists():
                return path
        if not alone:
            raise PrepareError(
                f"no landmarks of {stem} in {given}: expected {stem}/0.lms …, {stem}.npy or"
                f" {stem}.npz"
            )
    elif not alone:
        raise PrepareError(
            f"{given}: of several videos, landmarks must lie in one folder as NAME/0.lms …,"
            " NAME.npy or NAME.npz"
        )
    return given


class LandmarkFiles:
    """The detector that reads what another one has found.

    Raises:
        PrepareError: no landmarks there, too large, or not of a form that is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: NDArray[np.float64] | None = None
        if path.is_dir():
            if not any((path / f"{i}.lms").is_file() for i in range(100)):
                raise PrepareError(f"{path}: holds no landmarks (0.lms, 1.lms …)")
        else:
            self._array = _load(path)

    @property
    def point_count(self) -> int:
        """Landmarks of a frame."""
        return LANDMARKS if self._array is None else self._array.shape[1]

    def fingerprint(self) -> str:
        """A hash of all that is read."""
        digest = hashlib.sha256()
        files = [self.path]
        if self._array is None:
            files = sorted(self.path.glob("*.lms"), key=lambda file: file.name)
        for file in files:
            size = file.stat().st_size
            if self._array is None and (not file.is_file() or size > limits.LANDMARK_BYTES):
                raise PrepareError(
                    f"{file}: expected a file of landmarks of at most {limits.LANDMARK_BYTES} bytes"
                )
            digest.update(f"{file.name}\0{size}\0".encode())
            with open(file, "rb") as data:
                while chunk := data.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def detect(self, pictures: Sequence[NDArray[np.uint8]], first: int) -> NDArray[np.float32]:
        """As ``Detector.detect``."""
        if self._array is not None:
            out = np.full((len(pictures), *self._array.shape[1:]), np.nan, np.float32)
            part = self._array[first : first + len(pictures)]
            out[: len(part)] = part
            return out
        out = np.full((len(pictures), LANDMARKS, 2), np.nan, np.float32)
        for k in range(len(pictures)):
            file = self.path / f"{first + k}.lms"
            if file.exists():
                out[k] = read_landmarks(file)
        return out


def _load(path: Path) -> NDArray[np.float64]:
    if path.suffix not in (".npy", ".npz"):
        raise PrepareError(f"{path}: landmarks are a folder of .lms files, a .npy or a .npz")
    if not path.is_file() or path.stat().st_size > MOST_STORED:
        raise PrepareError(f"{path}: expected a file of at most {MOST_STORED >> 30} GiB")
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            array = _from_archive(path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, SyntaxError) as error:
        raise PrepareError(
            f"{path}: cannot be read as an array ({words_of(error)}){refused_as(path)}"
        ) from None
    shape = array.shape
    if (
        array.ndim != 3
        or not 1 <= shape[0] <= MOST_FRAMES
        or not 3 <= shape[1] <= MOST_POINTS
        or shape[2] not in (2, 3)
        or array.dtype.kind not in "fiu"
    ):
        raise PrepareError(
            f"{path}: shape {shape} of {array.dtype}, expected frames x points x 2 (x, y) or 3"
            " (x, y, confidence) numbers"
        )
    return array  # type: ignore[no-any-return]


def _from_archive(path: Path) -> NDArray[np.float64]:
    """The array ``landmarks`` of a .npz, or its only one; its size is looked at first."""
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()[:100]]
        name = f"{_KEY}.npy" if f"{_KEY}.npy" in names else names[0] if len(names) == 1 else ""
        if not name:
            raise PrepareError(f"{path}: expected an array named {_KEY!r}, or one alone")
        if archive.getinfo(name).file_size > MOST_BYTES:
            raise PrepareError(f"{path}: unpacks to more than {MOST_BYTES >> 20} MiB; use a .npy")
        with archive.open(name) as file:
            data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise PrepareError(f"{path}: unpacks to more than {MOST_BYTES >> 20} MiB; use a .npy")
    return np.load(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-any-return]
