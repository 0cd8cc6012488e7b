# SPDX-License-Identifier: Apache-2.0
"""The demo's second half: the recording spoken through a running server.

For people it is the page; where ``CI`` is set, a client of its own speaks and writes the video.
"""

from __future__ import annotations

import io
import time
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from lipsync_fast.errors import LipsyncError

PIECE = 8_000
"""Bytes of sound in a message."""


@dataclass(frozen=True)
class _Picture:
    """A frame as writers want it."""

    index: int
    pts: Fraction
    image: NDArray[np.uint8]
    jpeg: bytes


def speak_through_a_server(recording: Path, video: Path) -> None:
    """Start a server, say the recording to it as a client, write what comes back, stop it.

    Raises:
        LipsyncError: the server does not start, frames are missing, or the video cannot be written.
    """
    import trio

    from lipsync_fast.client.local import LocalServer

    begun = time.monotonic()
    with LocalServer() as server:
        ready = time.monotonic()
        frames = trio.run(_frames, server.url, recording)
        done = time.monotonic()
    _write(video, recording, frames)
    rate = len(frames) / (done - ready)
    typer.echo(
        f"live           {video.absolute()}\n"
        f"               {len(frames)} frames through a server that was up in"
        f" {ready - begun:.1f} s, at {rate:.0f} frames/s"
    )


async def _frames(url: str, recording: Path) -> list[bytes]:
    """All frames of the recording, as JPEGs."""
    import trio

    from lipsync_fast.client import ErrorMessage, Session, UtteranceEnded, VideoFrame, connect

    with wave.open(str(recording), "rb") as file:
        rate, pcm = file.getframerate(), file.readframes(file.getnframes())

    async def speak(session: Session) -> None:
        for at in range(0, len(pcm), PIECE):
            await session.send(pcm[at : at + PIECE])
        await session.end_utterance()

    frames: list[bytes] = []
    async with (
        connect(url, sample_rate=rate, pace="burst") as session,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(speak, session)
        async for event in session:
            if isinstance(event, VideoFrame):
                frames.append(bytes(event.jpeg))
            elif isinstance(event, ErrorMessage):
                raise LipsyncError(f"the server says: {event.message}")
            elif isinstance(event, UtteranceEnded):
                if event.frames != len(frames):
                    raise LipsyncError(f"only {len(frames)} of {event.frames} frames have come")
                break
    return frames


def _write(video: Path, recording: Path, frames: list[bytes]) -> None:
    from PIL import Image

    from lipsync_fast.output import open_writer
    from lipsync_fast.provenance import xmp_packet

    with open_writer(str(video), recording, xmp_packet(True), True) as writer:
        for index, jpeg in enumerate(frames):
            with Image.open(io.BytesIO(jpeg)) as picture:
                image = np.asarray(picture.convert("RGB"))
            writer.write(_Picture(index, Fraction(index, 25), image, jpeg))
        writer.commit()
