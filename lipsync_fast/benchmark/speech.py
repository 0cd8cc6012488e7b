# SPDX-License-Identifier: Apache-2.0
"""The sound that load is made of, and what its frames must look like."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.audio.windows import AudioWindow, BlockStream, frame_count, frame_sees
from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.engine.backends.base import RegionJob
from lipsync_fast.engine.pipeline import as_it_is
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet
from lipsync_fast.timing import FRAME_SAMPLES, NS_PER_S, SAMPLE_RATE

PIECE = 320
"""Samples in a message: 20 ms."""


def shipped_recording(seconds: float | None = None) -> NDArray[np.int16]:
    """The recording that comes with the package, 16 kHz mono, or its beginning."""
    path = Path(lipsync_fast.__file__).parent / "data" / "demo" / "speech.wav"
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (
            SAMPLE_RATE,
            1,
            2,
        )
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return pcm if seconds is None else pcm[: round(seconds * SAMPLE_RATE)]


def piece_due_ns(piece: int) -> int:
    """When a piece has been spoken wholly, from the utterance's beginning."""
    return (piece + 1) * PIECE * NS_PER_S // SAMPLE_RATE


def frame_due_ns(frame: int, window: AudioWindow) -> int:
    """When the last sample that a frame sees is due to be sent, from the utterance's beginning.

    Behind the end, the silence that a frame sees counts as if it came on the same clock.
    """
    last = frame_sees(frame, window)[1] - 1
    return piece_due_ns(max(0, last) // PIECE)


class Expected:
    """Makes single frames of one sound as ``render`` does, to compare with."""

    def __init__(self, avatar: str, pcm: NDArray[np.int16], threads: int = 1) -> None:
        self._avatar = lipsync_fast.open(avatar, backend="cpu", threads=threads)
        window = self._avatar.manifest.audio
        blocks = BlockStream(
            window, lambda w: self._avatar.backend.features(self._avatar.loaded, w)
        )
        sound = (pcm / np.float32(32768)).astype(np.float32)
        self._blocks = [*blocks.push(sound), *blocks.finish()]
        assert len(self._blocks) == frame_count(len(pcm)) == -(-len(pcm) // FRAME_SAMPLES)
        self._xmp = xmp_packet(self._avatar.manifest.synthetic)

    def jpeg(self, frame: int, index: int) -> bytes:
        """Frame ``frame`` of the sound over the avatar's frame ``index``."""
        job = RegionJob(self._avatar.loaded, index, self._blocks[frame])
        image = self._avatar.backend.submit([job], as_it_is)[0].result()
        return jpeg_with_xmp(encode_frame(image, self._avatar.manifest.jpeg), self._xmp)

    def close(self) -> None:
        """Free the avatar."""
        self._avatar.close()
