# SPDX-License-Identifier: Apache-2.0
"""Recordings and videos whose headers say something else than they hold, small and made here."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
Track = tuple[Pcm, bool]
"""Mono samples, and whether the file marks them as its default."""


def hiss(seconds: float, rate: int = 16_000, level: float = 0.2) -> Pcm:
    """Noise: codecs of variable rate need many bytes for it, and few for silence."""
    count = round(seconds * rate)
    return np.round(np.random.default_rng(3).normal(0, level * 32767 / 3, count)).astype(np.int16)


def wav(data: bytes, *, claimed: int, riff: int | None = None, after: bytes = b"") -> bytes:
    """A WAV of 16 kHz mono with a header that claims so many bytes of samples."""
    riff = claimed + 36 & 0xFFFF_FFFF if riff is None else riff
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + form
    return head + b"data" + struct.pack("<I", claimed) + data + after


def write(
    path: Path,
    *,
    pictures: int = 0,
    sounds: Sequence[Track] = (),
    video: str = "libx264",
    audio: str = "aac",
    rate: int = 48_000,
    size: tuple[int, int] = (96, 64),
    container: str | None = None,
) -> Path:
    """A file of grey pictures at 25 a second, and of tracks of sound."""
    with av.open(f"file:{path}", "w", format=container) as file:
        shown = None
        if pictures:
            shown = file.add_stream(video, rate=25)
            shown.width, shown.height, shown.pix_fmt = *size, "yuv420p"
            shown.codec_context.gop_size = 12
        heard = []
        for _, default in sounds:
            track = file.add_stream(audio, rate=rate, layout="mono")
            track.disposition = av.stream.Disposition.default.value if default else 0
            heard.append(track)
        for i in range(pictures):
            grey = np.full((size[1], size[0], 3), 20 + 4 * (i % 50), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            assert shown is not None
            file.mux(shown.encode(frame))
        for track, (samples, _) in zip(heard, sounds, strict=True):
            _encode(file, track, samples, rate)
        if shown is not None:
            file.mux(shown.encode(None))
    return path


def _encode(file: Any, track: Any, samples: Pcm, rate: int) -> None:
    step = track.codec_context.frame_size or 1024
    resampler = av.AudioResampler(format=track.format, layout="mono", rate=rate)
    for start in range(0, len(samples), step):
        piece = np.ascontiguousarray(samples[None, start : start + step])
        frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for out in resampler.resample(frame):
            file.mux(track.encode(out))
    file.mux(track.encode(None))


def raw_of_two_rates(path: Path, codec: str, container: str, rates: tuple[int, int]) -> Path:
    """6 s of silence and 2 s of hiss, coded at two rates and joined: a whole file without a table.

    Its length can only be guessed by its first frames.
    """
    parts = []
    for samples, bits in ((np.zeros(48_000 * 6, np.int16), rates[0]), (hiss(2, 48_000), rates[1])):
        part = path.with_suffix(f".{bits}")
        options = {"write_xing": "0", "id3v2_version": "0"} if container == "mp3" else {}
        with av.open(f"file:{part}", "w", format=container, options=options) as file:
            track = file.add_stream(codec, rate=48_000, layout="mono")
            track.bit_rate = bits
            _encode(file, track, samples, 48_000)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path
