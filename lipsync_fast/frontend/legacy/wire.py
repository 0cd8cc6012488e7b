# SPDX-License-Identifier: Apache-2.0
"""Binary requests and replies of the old protocols; little-endian, no input or output here.

Version 1 request:   u32 n | name, n bytes | u32 frame_id | u32 a | audio, a bytes
          reply:     u8 1 | u32 frame_id | u32 ms | u32 size | JPEG | u32 16 | float32 x1 y1 x2 y2
          error:     u8 0 | u32 frame_id | u32 ms | u32 size | text
One byte request:    u8 n | name, n bytes | i32 frame_id        reply: the bare JPEG
Frame of an avatar:  u8 2 | i32 frame_id | u8 n | type, n bytes | u32 size | JPEG

Audio is int16 mono at 24 kHz. Bytes behind it are ignored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lipsync_fast.errors import LegacyRequestError

_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_REPLY = struct.Struct("<BIII")
_BOUNDS = struct.Struct("<I4f")
_FRAME = struct.Struct("<BIB")
_MASK = 0xFFFF_FFFF
ERROR, PICTURE, AVATAR_FRAME = 0, 1, 2
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """Version 1: the generated region of a frame, with the sound that it shows."""

    name: str
    frame_id: int
    audio: memoryview


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """The one-byte form: the whole frame of the avatar, as a bare JPEG."""

    name: str
    frame_id: int


def parse(data: bytes) -> FrameRequest | PlainRequest:
    """A binary message of a client.

    A message has the one-byte form if its length is 1 + n + 4 with n its first byte, and it is no
    valid message of version 1.

    Raises:
        LegacyRequestError: it is no request.
    """
    try:
        return _version_1(data)
    except LegacyRequestError:
        if len(data) >= 5 and len(data) == 5 + data[0]:
            name = data[1:-4].decode("utf-8", "replace")
            return PlainRequest(name, _I32.unpack_from(data, len(data) - 4)[0])
        raise


def _version_1(data: bytes) -> FrameRequest:
    view = memoryview(data)
    if len(view) < 4:
        raise LegacyRequestError("Binary message too short")
    at = 4 + _U32.unpack_from(view)[0]
    if at > len(view):
        raise LegacyRequestError("Invalid model name length")
    if at + 4 > len(view):
        raise LegacyRequestError("Missing frame ID")
    frame_id = _U32.unpack_from(view, at)[0]
    if at + 8 > len(view):
        raise LegacyRequestError("Missing audio length", frame_id)
    size = _U32.unpack_from(view, at + 4)[0]
    if at + 8 + size > len(view):
        raise LegacyRequestError("Invalid audio data length", frame_id)
    name = bytes(view[4:at]).decode("utf-8", "replace")
    return FrameRequest(name, frame_id, view[at + 8 : at + 8 + size])


def pack_picture(frame_id: int, milliseconds: int, jpeg: bytes, bounds: Bounds) -> bytes:
    """The reply with a picture.

    Zero bytes behind the JPEG's end, counted in its size, put the bounds at a multiple of 4: one
    client reads them where they lie.
    """
    padding = -(_REPLY.size + len(jpeg) + 4) % 4
    head = _REPLY.pack(PICTURE, frame_id & _MASK, milliseconds & _MASK, len(jpeg) + padding)
    return b"".join((head, jpeg, bytes(padding), _BOUNDS.pack(16, *bounds)))


def pack_error(frame_id: int, milliseconds: int, text: str) -> bytes:
    """The reply that there is no picture, and why."""
    encoded = text.encode("utf-8", "replace")
    return _REPLY.pack(ERROR, frame_id & _MASK, milliseconds & _MASK, len(encoded)) + encoded


def pack_avatar_frame(frame_id: int, kind: str, jpeg: bytes) -> bytes:
    """The reply to get_video_frame.

    Raises:
        ValueError: ``kind`` has more than 255 bytes.
    """
    encoded = kind.encode()
    if len(encoded) > 255:
        raise ValueError(f"type of {len(encoded)} bytes")
    head = _FRAME.pack(AVATAR_FRAME, frame_id & _MASK, len(encoded))
    return b"".join((head, encoded, _U32.pack(len(jpeg)), jpeg))
