# SPDX-License-Identifier: Apache-2.0
"""What all forms share: what an import needs of a folder, and a list of what is wrong with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.rectangles import Track
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.families import Family

MOST_FRAMES = 15_000
"""Ten minutes at 25 a second, as much as ``avatar prepare`` takes."""
_NAMED = 8


class Picture(NamedTuple):
    """One frame of the avatar.

    Attributes:
        where: the file that it is from, for errors.
        rgb: H x W x 3 uint8.
        mask: where the original stays, rectangle-sized; None for nowhere.
        source: the file's bytes, if it is a JPEG or PNG.
    """

    where: str
    rgb: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None = None
    source: bytes | None = None


@dataclass(frozen=True, slots=True)
class Networks:
    """Where the weights lie: the picture's networks as .pth or .onnx, the audio encoder's as .pth
    (of a checkpoint that has all of them, the same file)."""

    checkpoint: Path
    audio_encoder: Path


@dataclass(slots=True)
class Source:
    """All that an avatar is made of, with its first picture looked at.

    Attributes:
        form: its name, for people.
        path: the folder.
        track: rectangles of all frames; their number is the frames'.
        pictures: all of them, in order; to be closed. May add to ``warnings`` while it runs.
        family: of the networks.
        warnings: what a person should know.
        notes: parts that are there and not needed, or the other way round.
    """

    form: str
    path: Path
    width: int
    height: int
    track: Track
    networks: Networks
    pictures: Generator[Picture]
    family: Family
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Problems:
    """What is missing or wrong, gathered so that it is said all at once."""

    def __init__(self, path: Path, form: str) -> None:
        self._path, self._form = path, form
        self._found: list[str] = []

    def add(self, text: str) -> None:
        """One more."""
        self._found.append(text)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """What goes wrong within is gathered, and the rest of it left out."""
        try:
            yield
        except AvatarImportError as error:
            self.add(str(error))

    def check(self) -> None:
        """Go on only if there were none.

        Raises:
            AvatarImportError: names them.
        """
        if len(self._found) == 1:
            raise AvatarImportError(self._found[0])
        if self._found:
            more = f"; and {len(self._found) - _NAMED} more" if len(self._found) > _NAMED else ""
            raise AvatarImportError(
                f"{self._path}: {len(self._found)} parts of a {self._form} avatar are missing or"
                f" wrong: {'; '.join(self._found[:_NAMED])}{more}"
            )


def need_file(path: Path, root: Path, what: str) -> Path:
    """A file of the folder.

    Raises:
        AvatarImportError: missing, no file, or a link that leads out of ``root``.
    """
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError up to Python 3.12
        raise AvatarImportError(f"{path}: missing; expected {what}") from None
    if not resolved.is_relative_to(root):
        raise AvatarImportError(f"{path}: is a link that leads out of {root}; copy its file in")
    if not resolved.is_file():
        raise AvatarImportError(f"{path}: is not a file; expected {what}")
    return path
