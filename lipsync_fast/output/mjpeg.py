# SPDX-License-Identifier: Apache-2.0
"""Frames as JPEG files one after another on a stream (MJPEG)."""

from __future__ import annotations

from types import TracebackType
from typing import BinaryIO, Self

from lipsync_fast.errors import OutputError
from lipsync_fast.output.base import FrameLike


class MjpegWriter:
    """Writes each frame's JPEG at once, so that a reader sees it without delay.

    Nothing can be taken back from a stream: an error ends it after the last whole frame.
    """

    target = "standard output"

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, frame: FrameLike) -> None:
        """Add the next frame.

        Raises:
            BrokenPipeError: the reader has gone.
            OutputError: the stream cannot be written (no space, say).
        """
        try:
            self._stream.write(frame.jpeg)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {self.target}: {error.strerror}") from None

    def commit(self) -> None:
        """Nothing is left to do: every frame is out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None
