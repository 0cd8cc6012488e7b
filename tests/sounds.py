# SPDX-License-Identifier: Apache-2.0
"""Sound files for tests, good and odd, and the command that renders one."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.timing import SAMPLE_RATE


def tone(seconds: float, rate: int = SAMPLE_RATE, channels: int = 1) -> NDArray[np.float32]:
    time_s = np.arange(round(seconds * rate)) / rate
    wanted = 0.3 * np.sin(2 * np.pi * 220 * time_s) * np.sin(2 * np.pi * 2 * time_s)
    return np.repeat(wanted[:, None], channels, axis=1).astype(np.float32)


def write_wav(path: Path, samples: NDArray[np.float32], rate: int = SAMPLE_RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_media(
    path: Path,
    samples: NDArray[np.float32],
    codec: str,
    layout: str = "mono",
    rate: int = SAMPLE_RATE,
    **options: str,
) -> Path:
    """Encode samples x channels float32 with FFmpeg."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, len(samples), 1024):
            piece = np.ascontiguousarray(samples[start : start + 1024].T)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def render_command(avatar: Path, sound: str, out: str) -> list[str]:
    """``lipsync-fast render``, for a process of its own."""
    return [
        sys.executable, "-m", "lipsync_fast", "render", sound, "-o", out, "--avatar", str(avatar),
    ]  # fmt: skip
