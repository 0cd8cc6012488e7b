# SPDX-License-Identifier: Apache-2.0
"""Frames as lossless PNG files in a folder: 000000.png, 000001.png, …"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from lipsync_fast.output.base import (
    FrameLike,
    check_folder_target,
    output_error,
    partial_name,
    publish_folder,
    remove_frames,
)
from lipsync_fast.provenance import png_info

COMPRESSION = 1
"""zlib's fastest level: three times as fast as the default for a tenth more bytes."""


class PngFolderWriter:
    """Writes into a hidden folder beside the target, which gets its name on ``commit``."""

    def __init__(self, target: Path, packet: bytes, *, force: bool = False) -> None:
        """Make the hidden folder.

        Raises:
            OutputError: the target cannot be taken.
        """
        check_folder_target(target, force)
        self._path = target
        self._force = force
        self._info = png_info(packet)
        self._folder = partial_name(target)
        try:
            self._folder.mkdir()
        except OSError as error:
            raise output_error(target, error) from None

    @property
    def target(self) -> str:
        """The folder's final name."""
        return str(self._path)

    def write(self, frame: FrameLike) -> None:
        """Add the next frame.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._folder / f"{frame.index:06d}.png"
        try:
            with path.open("wb") as file:
                Image.fromarray(frame.image).save(
                    file, format="PNG", compress_level=COMPRESSION, pnginfo=self._info
                )
        except OSError as error:
            raise output_error(self._path, error) from None

    def commit(self) -> None:
        """Give the folder its final name.

        Raises:
            OutputError: something else took the name meanwhile.
        """
        publish_folder(self._folder, self._path, self._force)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            remove_frames(self._folder)
