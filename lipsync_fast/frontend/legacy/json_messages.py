# SPDX-License-Identifier: Apache-2.0
"""The text messages of the old protocols; no input or output here.

What a client sends is read field by field, so that an error can name the request's own frame_id
and request_id though another field is wrong. Unknown fields are ignored, and cost nothing.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from lipsync_fast.errors import LegacyRequestError

Bounds = tuple[float, float, float, float]
RequestId = str | int | float
MOST_BATCH = 100
"""Frames of one batch request."""
MOST_BATCH_BYTES = 64 << 10
"""Bytes of a request's list of frames."""
MOST_TEXT = 1_000
"""Characters of a name or an id."""
INFERENCE, BATCH = "inference", "batch"
Field = TypeVar("Field")
_NONE = msgspec.Raw(b"null")


class _Fields(msgspec.Struct):
    """Fields of all requests, not decoded yet."""

    type: msgspec.Raw = _NONE
    model_name: msgspec.Raw = _NONE
    frame_id: msgspec.Raw = _NONE
    video_type: msgspec.Raw = _NONE
    request_id: msgspec.Raw = _NONE
    audio_override: msgspec.Raw = _NONE
    batch_frames: msgspec.Raw = _NONE


class _BatchFrame(msgspec.Struct):
    frame_id: int = 0


_FIELDS = msgspec.json.Decoder(_Fields)
msgspec.json.Decoder(list[_BatchFrame])  # looks at its annotations now


@dataclass(slots=True)
class Asked:
    """A text message of a client.

    Attributes:
        type: as it says; "inference" or "batch" where it says nothing.
        audio: int16 mono at 24 kHz.
        problem: what is wrong with it; None where nothing is.
    """

    type: str = INFERENCE
    model_name: str = ""
    frame_id: int = 0
    video_type: str = "full_body"
    request_id: RequestId | None = None
    audio: bytes = b""
    frame_ids: tuple[int, ...] = ()
    problem: str | None = None


def parse(text: str) -> Asked:
    """A text message of a client, as far as it can be read.

    Raises:
        LegacyRequestError: it is no JSON object at all.
    """
    try:
        fields = _FIELDS.decode(text)
    except RecursionError:
        raise LegacyRequestError("nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise LegacyRequestError(str(error)) from None
    asked = Asked()
    read = _Reader(fields, asked)
    asked.request_id = read.field("request_id", RequestId, None)
    asked.frame_id = read.field("frame_id", int, 0)
    asked.model_name = read.field("model_name", str, "")[:MOST_TEXT]
    asked.video_type = read.field("video_type", str, asked.video_type)[:MOST_TEXT]
    asked.type = read.field("type", str, "")[:MOST_TEXT]
    if asked.type in ("", INFERENCE):
        batch = bytes(fields.batch_frames) != b"null"
        asked.type = BATCH if batch else INFERENCE
        asked.audio = read.audio()
        if batch:
            asked.frame_ids = read.frame_ids()
    if isinstance(asked.request_id, str):
        asked.request_id = asked.request_id[:MOST_TEXT]
    return asked


@dataclass
class _Reader:
    fields: _Fields
    asked: Asked

    def field(self, name: str, kind: Any, default: Field) -> Field:
        """A field's value; the default where it is missing, null, or (with a problem) wrong."""
        raw: msgspec.Raw = getattr(self.fields, name)
        try:
            value: Field | None = msgspec.json.decode(raw, type=kind | None, strict=False)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            self._complain(f"{name}: {error}")
            return default
        return default if value is None else value

    def audio(self) -> bytes:
        text = self.field("audio_override", str, "")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            self._complain("audio_override is not base64")
            return b""

    def frame_ids(self) -> tuple[int, ...]:
        if len(bytes(self.fields.batch_frames)) > MOST_BATCH_BYTES:
            self._complain(f"batch_frames has more than {MOST_BATCH_BYTES} bytes")
            return ()
        frames: list[_BatchFrame] = self.field("batch_frames", list[_BatchFrame], [])
        if len(frames) > MOST_BATCH:
            self._complain(f"batch_frames: {len(frames)} frames, at most {MOST_BATCH}")
            return ()
        return tuple(frame.frame_id for frame in frames)

    def _complain(self, text: str) -> None:
        self.asked.problem = self.asked.problem or text


# ---------------------------------------------------------------- what is answered
class _Typed(msgspec.Struct, tag_field="type", kw_only=True, frozen=True):
    """Base of replies that say their type."""


class Stats(_Typed, tag="stats", kw_only=True, frozen=True):
    """What this front has done for old clients since it began."""

    total_requests: int
    binary_requests: int
    json_requests: int
    binary_percentage: float
    average_time_ms: float
    connected_clients: int


class ProtocolInfo(_Typed, tag="protocol_info", kw_only=True, frozen=True):
    """switch_to_binary, on stream ports. There is nothing to switch."""

    binary_supported: bool = True
    binary_protocol_version: str = "1.0"
    message: str = "Send binary messages whenever you like; both kinds are understood"


class ProtocolAck(_Typed, tag="protocol_ack", kw_only=True, frozen=True):
    """switch_to_binary on the HTTP port, and test_binary."""

    message: str = "Binary protocol supported"


class LoadedModels(msgspec.Struct, frozen=True):
    """Names of the avatars that can be used."""

    loaded_models: list[str]
    count: int


class Models(_Typed, tag="models", kw_only=True, frozen=True):
    """get_models."""

    models: LoadedModels


class ModelList(_Typed, tag="model_list", kw_only=True, frozen=True):
    """list_models."""

    models: list[str]
    count: int


class ModelNumbers(msgspec.Struct, kw_only=True, frozen=True):
    """What was made of an avatar for old clients."""

    model_name: str
    total_requests: int
    avg_inference_time_ms: float
    min_inference_time_ms: float
    max_inference_time_ms: float
    frame_count: int
    device: str
    optimizations_active: list[str]


class ModelStats(_Typed, tag="model_stats", kw_only=True, frozen=True):
    """get_model_stats."""

    stats: ModelNumbers


class ModelStatsFailure(_Typed, tag="model_stats", kw_only=True, frozen=True):
    """get_model_stats of an avatar that cannot be used."""

    error: str
    model_name: str


class Metadata(_Typed, tag="metadata", kw_only=True, frozen=True):
    """get_metadata."""

    success: bool = True
    model_name: str
    frame_count: int
    available_videos: tuple[str, ...]
    audio_path: str = ""
    bounds: Bounds


class MetadataFailure(_Typed, tag="metadata", kw_only=True, frozen=True):
    """get_metadata of an avatar that cannot be used."""

    success: bool = False
    model_name: str
    frame_count: int = 0
    available_videos: tuple[str, ...] = ()
    audio_path: str = ""
    bounds: tuple[float, ...] = ()
    error: str


class VideoFrameFailure(_Typed, tag="video_frame", kw_only=True, frozen=True):
    """get_video_frame that failed."""

    error: str
    model_name: str
    frame_id: int
    video_type: str


class UnknownType(_Typed, tag="error", kw_only=True, frozen=True):
    """What was said is no request."""

    error: str


class PictureMetadata(msgspec.Struct, frozen=True):
    """Which of the avatar's frames lies under a picture, and the picture's shape."""

    picture_index: int
    prediction_shape: tuple[int, int, int]


class Inference(msgspec.Struct, kw_only=True, frozen=True):
    """A picture."""

    success: bool = True
    model_name: str
    frame_id: int
    prediction_data: str
    bounds: Bounds
    processing_time_ms: int
    metadata: PictureMetadata
    request_id: RequestId
    protocol: str = "json_fallback"


class InferenceFailure(msgspec.Struct, kw_only=True, frozen=True):
    """No picture, or no batch of pictures."""

    success: bool = False
    error: str
    processing_time_ms: int
    request_id: RequestId
    protocol: str = "json_fallback"
    frame_id: int


class BatchPicture(msgspec.Struct, kw_only=True, frozen=True):
    """One of a batch."""

    frame_id: int
    prediction_data: str
    bounds: Bounds
    metadata: PictureMetadata


class Batch(msgspec.Struct, kw_only=True, frozen=True):
    """Pictures, in the order in which they were asked for."""

    success: bool = True
    batch: bool = True
    model_name: str
    batch_size: int
    frames: list[BatchPicture]
    total_processing_time_ms: float
    average_frame_time_ms: float
    batch_fps: float
    request_id: RequestId


_encoder = msgspec.json.Encoder()


def encode(reply: msgspec.Struct) -> str:
    """A reply as JSON text."""
    return _encoder.encode(reply).decode()


def base64_of(jpeg: bytes) -> str:
    """A picture in a text message."""
    return base64.b64encode(jpeg).decode("ascii")
