# SPDX-License-Identifier: Apache-2.0
"""What is asked of a front, and what it answers: the old protocol's text messages, both ways."""

from __future__ import annotations

import struct

import msgspec

MOST_NAME = 1_000
"""Characters of a name that are passed on."""
CHUNK_BYTES = 1_920
"""40 ms of sound, int16 mono at 24 kHz."""
BEFORE, AFTER, AHEAD = 8, 7, 24
"""Chunks of a window: before its first frame's; behind its last frame's, at least; and behind it
those that are of use, since no frame sees farther."""
_FRAME = struct.Struct("<BiB")
_SIZE = struct.Struct("<I")


class FrameOf(msgspec.Struct, frozen=True):
    """One of a batch."""

    frame_id: int


class Question(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request; bytes become base64."""

    type: str = ""
    model_name: str = ""
    frame_id: int = 0
    video_type: str = ""
    batch_frames: list[FrameOf] | None = None
    audio_override: bytes = b""


class PictureMetadata(msgspec.Struct, frozen=True):
    """Of a picture."""

    prediction_shape: list[int] = []


class Answer(msgspec.Struct, kw_only=True):
    """A picture, or why there is none; fields of others are there by their defaults."""

    success: bool = True
    error: str = ""
    prediction_data: bytes = b""
    bounds: list[float] = []
    processing_time_ms: float = 0
    metadata: PictureMetadata = PictureMetadata()
    frames: list[BatchedPicture] = []
    average_frame_time_ms: float = 0.0
    models: list[str] = []
    stats: ModelNumbers | None = None
    frame_count: int = 0
    available_videos: list[str] = []
    audio_path: str = ""


class BatchedPicture(msgspec.Struct, kw_only=True):
    """One of a batch."""

    frame_id: int = 0
    prediction_data: bytes = b""
    bounds: list[float] = []
    metadata: PictureMetadata = PictureMetadata()


class ModelNumbers(msgspec.Struct, kw_only=True):
    """What was made of an avatar."""

    total_requests: int = 0
    avg_inference_time_ms: float = 0.0
    min_inference_time_ms: float = 0.0
    max_inference_time_ms: float = 0.0
    frame_count: int = 0
    device: str = ""
    optimizations_active: list[str] = []


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Answer)


def encode(question: Question) -> str:
    """A request as its message."""
    question.model_name = question.model_name[:MOST_NAME]
    question.video_type = question.video_type[:MOST_NAME]
    return _encoder.encode(question).decode()


def read(reply: str | bytes) -> Answer:
    """A reply in text.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    answer = _decoder.decode(reply)
    answer.success = answer.success and not answer.error
    return answer


def read_avatar_frame(reply: bytes) -> bytes:
    """The JPEG in a reply to get_video_frame.

    Raises:
        ValueError: it is none.
    """
    try:
        _, _, length = _FRAME.unpack_from(reply)
        at = _FRAME.size + length
        (size,) = _SIZE.unpack_from(reply, at)
    except struct.error:
        raise ValueError("no picture of an avatar") from None
    at += _SIZE.size
    if len(reply) != at + size:
        raise ValueError("no picture of an avatar")
    return reply[at:]
