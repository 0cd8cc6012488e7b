# SPDX-License-Identifier: Apache-2.0
"""What is asked for pictures, and their responses; no input or output here.

A batch is asked for in pieces: each piece is a window of sound, and lies over the one before by
more than half, so that the front lays them together to one sound, also where that is silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import soxr

from lipsync_fast.errors import LipsyncError
from lipsync_fast.gateway.questions import (
    AFTER,
    AHEAD,
    BEFORE,
    CHUNK_BYTES,
    Answer,
    FrameOf,
    Question,
    encode,
    read,
)
from lipsync_fast.gateway.rpc import messages as m

PIECE = 16
"""Frames of a piece."""
MOST_FRAMES = 1_000
"""Of one request: 40 s."""
SLOW_CHUNK, SLOW_RATE, RATE = 1_280, 16_000, 24_000
"""A chunk of 40 ms at the other rate that clients use."""


@dataclass(frozen=True)
class Piece:
    """Frames that are asked for together."""

    frame_ids: Sequence[int]
    message: str


def single(model: str, frame_id: int, audio: bytes = b"") -> str:
    """The message that asks for one picture."""
    heard = audio[: (BEFORE + 1 + AHEAD) * CHUNK_BYTES]
    return encode(Question(model_name=model, frame_id=frame_id, audio_override=heard))


def pieces(model: str, frame_ids: Sequence[int], pcm: bytes = b"") -> Iterator[Piece]:
    """The messages that ask for many.

    Args:
        model: name of the avatar.
        frame_ids: of the pictures.
        pcm: their sound, from ``joined``; nothing for the avatar's own pictures.
    """
    for at in range(0, len(frame_ids), PIECE):
        ids = frame_ids[at : at + PIECE]
        end = at + BEFORE + len(ids) + AHEAD
        question = Question(
            model_name=model,
            batch_frames=[FrameOf(each) for each in ids],
            audio_override=pcm[at * CHUNK_BYTES : end * CHUNK_BYTES],
        )
        yield Piece(ids, encode(question))


def joined(chunks: Sequence[bytes], frames: int) -> bytes:
    """The sound of a batch, int16 at 24 kHz, in whole chunks.

    Raises:
        LipsyncError: it cannot be one; says what was expected.
    """
    needed = BEFORE + frames + AFTER
    if len(chunks) < needed:
        raise LipsyncError(
            f"audio_chunks: {len(chunks)} chunks; {frames} frames need {needed},"
            f" {BEFORE} before and {AFTER} behind them"
        )
    size = len(chunks[0])
    if size not in (CHUNK_BYTES, SLOW_CHUNK):
        raise LipsyncError(
            f"audio_chunks: a chunk of {size} bytes; expected 40 ms of int16 mono:"
            f" {CHUNK_BYTES} bytes (24 kHz) or {SLOW_CHUNK} (16 kHz)"
        )
    used = chunks[: BEFORE + frames + AHEAD]
    for number, chunk in enumerate(used):
        last = number == len(chunks) - 1
        if len(chunk) != size and not (last and len(chunk) < size):
            raise LipsyncError(
                f"audio_chunks: chunk {number} has {len(chunk)} bytes, the first one {size}"
            )
    pcm = b"".join(used).ljust(size * len(used), b"\0")
    return pcm if size == CHUNK_BYTES else _faster(pcm)


def _faster(pcm: bytes) -> bytes:
    """Sound at 16 kHz at 24 kHz."""
    samples = np.frombuffer(pcm, "<i2").astype(np.float32)
    made = soxr.resample(samples, SLOW_RATE, RATE, quality="VHQ")
    wanted = len(pcm) // SLOW_CHUNK * CHUNK_BYTES // 2
    made = np.pad(made, (0, max(0, wanted - len(made))))[:wanted]
    return bytes(np.clip(np.rint(made), -32768, 32767).astype("<i2").tobytes())


# ---------------------------------------------------------------- responses
def understood(reply: str | bytes) -> Answer:
    """A front's reply.

    Raises:
        LipsyncError: it is no such reply.
    """
    try:
        return read(reply)
    except (msgspec.MsgspecError, UnicodeError):
        raise LipsyncError("the server has answered something else than was asked for") from None


def picture(reply: str | bytes, model: str, frame_id: int) -> m.Message:
    """The response with the picture of a reply to ``single``, or with what it says is wrong."""
    try:
        answer = understood(reply)
    except LipsyncError as error:
        return refused(model, frame_id, str(error))
    if not answer.success:
        return refused(model, frame_id, answer.error, answer.processing_time_ms)
    return _response(
        model, frame_id, answer.prediction_data, answer.bounds,
        answer.metadata.prediction_shape, answer.processing_time_ms,
    )  # fmt: skip


def pictures(reply: str | bytes, model: str, frame_ids: Sequence[int]) -> list[m.Message]:
    """The responses of a reply to a piece: one for each of its frames, in order."""
    try:
        answer = understood(reply)
        if answer.success and len(answer.frames) != len(frame_ids):
            raise LipsyncError("the server has answered with another number of pictures")
    except LipsyncError as error:
        return [refused(model, each, str(error)) for each in frame_ids]
    if not answer.success:
        return [refused(model, each, answer.error) for each in frame_ids]
    return [
        _response(
            model, frame_id, made.prediction_data, made.bounds,
            made.metadata.prediction_shape, answer.average_frame_time_ms,
        )
        for frame_id, made in zip(frame_ids, answer.frames, strict=True)
    ]  # fmt: skip


def _response(
    model: str,
    frame_id: int,
    jpeg: bytes,
    bounds: list[float],
    shape: list[int],
    milliseconds: float,
) -> m.Message:
    return m.OptimizedInferenceResponse(
        success=True,
        prediction_data=jpeg,
        bounds=bounds,
        processing_time_ms=round(milliseconds),
        model_name=model,
        frame_id=frame_id,
        prediction_shape="x".join(map(str, shape)),
        inference_time_ms=milliseconds,
    )


def refused(model: str, frame_id: int, why: str, milliseconds: float = 0) -> m.Message:
    """The response that there is no picture, and why."""
    return m.OptimizedInferenceResponse(
        success=False,
        model_name=model,
        frame_id=frame_id,
        error=why or "there is no picture",
        processing_time_ms=round(milliseconds),
    )
