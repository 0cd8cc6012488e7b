# SPDX-License-Identifier: Apache-2.0
"""Sound as a caller has it: a file's path, an open file, an array, bytes, or pieces of these."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.pcm import Resampler, to_float, to_mono
from lipsync_fast.closing import Closing
from lipsync_fast.errors import AudioFormatError, MediaError, words_of
from lipsync_fast.media.audio import MediaSource

Path_: TypeAlias = str | os.PathLike[str]
Bytes: TypeAlias = bytes | bytearray | memoryview
Samples: TypeAlias = Bytes | NDArray[np.generic]
Audio: TypeAlias = Path_ | BinaryIO | Samples | Iterable[Samples]
PIECE = 16_000
"""Samples of a long array that are taken at a time."""
FORMS = (
    "the path of a sound or video file, a file that is open for reading bytes, an array of"
    " samples, bytes (16-bit little-endian, mono), or an iterable of arrays or bytes"
)


class GivenSound(Closing):
    """Iterate once for 16 kHz mono float32 pieces of a sound, whatever it was given as.

    Args:
        audio: see ``FORMS``.
        sample_rate: of PCM; a file says its own.

    Raises:
        MediaError: a file cannot be opened, or holds no sound.
        AudioFormatError: ``audio`` is none of these; ``sample_rate`` is missing, given for a file,
            or none that can be used.
    """

    def __init__(self, audio: Audio, sample_rate: int | None) -> None:
        self._warnings: list[str] = []
        self._file: MediaSource | None = None
        self._closing = ExitStack()
        self._named = ("", "")
        """The path of what an open file was copied to, and what the file is called."""
        if isinstance(audio, io.TextIOBase):
            raise AudioFormatError("audio: this file is open as text; open it with mode 'rb'")
        if isinstance(audio, (str, os.PathLike)) or hasattr(audio, "read"):
            if sample_rate is not None:
                raise AudioFormatError(
                    f"sample_rate {sample_rate!r}: only for PCM; a file says its own"
                )
            self._pieces: Iterator[NDArray[np.float32]] = self._of_file(audio)
            return
        pieces = _pieces_of(audio)
        if sample_rate is None:
            raise AudioFormatError(
                "sample_rate is missing: PCM needs it, in samples a second, such as 16000"
            )
        self._pieces = self._resampled(Resampler(sample_rate), pieces)

    @property
    def warnings(self) -> list[str]:
        """What was mended so far; complete when the iteration has ended."""
        if self._file is None:
            return self._warnings
        return [text.replace(*self._named) for text in self._file.warnings]

    @property
    def seconds(self) -> float | None:
        """Its length where something says it beforehand."""
        return None if self._file is None else self._file.seconds

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return self._pieces

    def close(self) -> None:
        """Close what was opened here; a file that came open stays open."""
        self._closing.close()

    def _of_file(self, given: Any) -> Iterator[NDArray[np.float32]]:
        """The sound of a media file. (Opened at once, decoded as it is iterated over.)"""
        path = given
        if not isinstance(given, (str, os.PathLike)):
            name = getattr(given, "name", None)
            name = name if isinstance(name, str) and name else "the open file"
            try:
                # Without a buffer: what a full disk does not take would be tried again at its end.
                made = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with the others)
                copy = self._closing.enter_context(made)
            except OSError as error:  # as where the disk is full
                raise MediaError(f"{name}: no room for a copy of it: {words_of(error)}") from None
            path = f"/proc/self/fd/{copy.fileno()}"
            self._named = (path, name)
            try:
                _copy(given, copy, name)
            except BaseException:
                self.close()
                raise
        try:
            self._file = self._closing.enter_context(MediaSource(path))
        except BaseException as error:
            self.close()
            raise self._renamed(error) from None
        return self._decoded(self._file)

    def _decoded(self, file: MediaSource) -> Iterator[NDArray[np.float32]]:
        try:
            yield from file
        except MediaError as error:
            raise self._renamed(error) from None

    def _renamed(self, error: BaseException) -> BaseException:
        """The same error, about the file that was given and not about the copy of it."""
        if isinstance(error, MediaError) and self._named[0]:
            error.args = (str(error).replace(*self._named),)
        return error

    def _resampled(
        self, resampler: Resampler, pieces: Iterator[Samples]
    ) -> Iterator[NDArray[np.float32]]:
        rest = b""
        for piece in pieces:
            if isinstance(piece, (bytes, bytearray, memoryview)):
                data = rest + bytes(piece)
                whole = len(data) & ~1
                samples, rest = np.frombuffer(data[:whole], "<i2"), data[whole:]
            else:
                samples = _array(piece)
            yield resampler.push(to_mono(to_float(samples)))
        if rest:
            self._warnings.append("the last byte is half a sample and was left out")
        if resampler.report.samples == 0:
            raise AudioFormatError("audio: the sound has 0 samples; nothing to render")
        last = resampler.finish()
        self._warnings += resampler.report.warnings()
        yield last


def _copy(given: Any, copy: io.FileIO, name: str) -> None:
    """Copy what is left of an open file: where FFmpeg reads, it looks back and forth."""
    while True:
        try:
            piece = given.read(1 << 20)
        except (OSError, ValueError) as error:  # closed, not open for reading, gone
            raise MediaError(f"{name}: cannot be read ({words_of(error)})") from None
        if isinstance(piece, str):
            raise AudioFormatError("audio: this file is open as text; open it with mode 'rb'")
        if not piece:
            break
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[copy.write(rest) :]
        except OSError as error:
            folder = tempfile.gettempdir()
            raise MediaError(f"{name}: no room for it in {folder} ({error.strerror})") from None


def _pieces_of(audio: Any) -> Iterator[Samples]:
    if isinstance(audio, np.ndarray):
        if not audio.ndim:
            raise AudioFormatError("audio: a single number; expected an array of samples")
        return (audio[i : i + PIECE] for i in range(0, len(audio), PIECE))
    if isinstance(audio, memoryview):
        audio = audio.cast("B") if audio.contiguous else audio.tobytes()
    if isinstance(audio, (bytes, bytearray, memoryview)):
        data: Bytes = audio
        return (data[i : i + 2 * PIECE] for i in range(0, len(data), 2 * PIECE))
    try:
        return iter(audio)
    except TypeError:
        kind = type(audio).__name__
        raise AudioFormatError(f"audio of type {kind}: expected {FORMS}") from None


def _array(piece: object) -> NDArray[np.generic]:
    try:
        array = np.asarray(piece)
    except ValueError:  # lists of lists of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf":
        kind = f"an array of {array.dtype}" if isinstance(piece, np.ndarray) else type(piece)
        name = kind if isinstance(kind, str) else kind.__name__
        raise AudioFormatError(f"audio: a piece is {name}; expected arrays of samples, or bytes")
    return array
