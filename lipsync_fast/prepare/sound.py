# SPDX-License-Identifier: Apache-2.0
"""A video's sound as a WAV file of 16 kHz, laid beside its frames: 640 samples for each."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.errors import MediaError, NoSoundError
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.timing import SAMPLE_RATE

FRAME_SAMPLES = 640


def write_sound(video: Path, begins: Fraction, frames: int, file: Path) -> list[str] | None:
    """Write ``640 * frames`` samples; sample 0 is heard where frame 0 is shown.

    Args:
        begins: frame 0's time stamp in the video, in seconds.

    Returns:
        Warnings, or None where the video has no track of sound (then nothing is written).

    Raises:
        MediaError: it has sound that cannot be read, or nothing of it decodes; no file is left.
    """
    total, written = frames * FRAME_SAMPLES, 0
    try:
        source = MediaSource(video)
    except NoSoundError:
        return None
    with source, wave.open(str(file), "wb") as out:
        out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        try:
            for piece in _aligned(source, round((source.begins - begins) * SAMPLE_RATE)):
                part = piece[: total - written]
                pcm = np.rint(np.clip(part, -1, 1 - 2**-15) * 32768).astype("<i2")
                out.writeframes(pcm.tobytes())
                written += len(part)
                if written == total:
                    break
        except MediaError:
            file.unlink()
            raise
        silence = total - written
        out.writeframes(bytes(2 * silence))
    warnings = [warning.removeprefix(f"{video}: ") for warning in source.warnings]
    if silence > SAMPLE_RATE // 2:
        warnings.append(f"the sound ends {silence / SAMPLE_RATE:.1f} s before the pictures")
    return warnings


def append_sound(file: Path, more: Path | None, frames: int) -> None:
    """Write so many frames' sound behind a file's; silence where there is no other file.

    Raises:
        OSError: it cannot be written.
    """
    whole = file.with_name(f"{file.name}.new")
    with wave.open(str(whole), "wb") as out:
        out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        for given in filter(None, (file, more)):
            with wave.open(str(given), "rb") as sound:
                while piece := sound.readframes(SAMPLE_RATE):
                    out.writeframes(piece)
        if more is None:
            out.writeframes(bytes(2 * frames * FRAME_SAMPLES))
    whole.replace(file)


def read_sound(file: Path) -> NDArray[np.int16]:
    """What ``write_sound`` has written."""
    with wave.open(str(file), "rb") as sound:
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.int16)


def _aligned(source: MediaSource, late: int) -> Iterator[NDArray[np.float32]]:
    """The pieces after ``late`` samples of silence, or without their first ``-late`` samples."""
    while late > 0:
        yield np.zeros(min(late, SAMPLE_RATE), np.float32)
        late -= min(late, SAMPLE_RATE)
    for piece in source:
        clean = np.nan_to_num(piece, nan=0.0, posinf=0.0, neginf=0.0)
        dropped = min(-late, len(clean))
        late += dropped
        if dropped < len(clean):
            yield clean[dropped:]
