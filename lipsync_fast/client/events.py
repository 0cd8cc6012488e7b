# SPDX-License-Identifier: Apache-2.0
"""What a session gives to whoever iterates over it."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, TypeAlias

import msgspec

from lipsync_fast.errors import ProtocolError
from lipsync_fast.geometry import Rect
from lipsync_fast.protocol import (
    ErrorMessage,
    MediaFlag,
    MediaType,
    Pong,
    SessionInterrupted,
    SessionOverloaded,
    SessionStarted,
    Stats,
    UtteranceEnded,
    UtteranceStarted,
    unpack_media,
)


class VideoFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of the session's video; a notebook shows it as its picture.

    Attributes:
        jpeg: the picture, encoded.
        content: the whole frame, or the face rectangle alone.
        box: where the picture lies in the full frame.
        pts_us: when to show it, microseconds from the session's start.
        avatar_frame: index of the avatar's own frame under it.
        utterance: whose sound it shows; 0 for none.
        sequence: number of the media message in the session; gaps are what was left out.
        flags: MediaFlag bits, which ``kind``, ``first``, ``last`` and ``repeated`` spell out.
    """

    jpeg: bytes
    content: Literal["frame", "mouth"]
    box: Rect
    pts_us: int
    avatar_frame: int
    utterance: int
    sequence: int
    flags: MediaFlag

    @property
    def pts(self) -> Fraction:
        """When to show it, seconds from the session's start."""
        return Fraction(self.pts_us, 1_000_000)

    @property
    def kind(self) -> Literal["idle", "speech"]:
        """Whether something is said in it."""
        return "idle" if self.flags & MediaFlag.IDLE else "speech"

    @property
    def first(self) -> bool:
        """The first of its utterance."""
        return bool(self.flags & MediaFlag.FIRST)

    @property
    def last(self) -> bool:
        """The last of its utterance, as far as that was known when it was planned."""
        return bool(self.flags & MediaFlag.LAST)

    @property
    def repeated(self) -> bool:
        """Its own picture was not ready in time: it is an older one."""
        return bool(self.flags & MediaFlag.REPEATED)

    def _repr_jpeg_(self) -> bytes:
        return self.jpeg

    def __repr__(self) -> str:
        said = "".join(f", {word}" for word in ("first", "last", "repeated") if getattr(self, word))
        return (
            f"VideoFrame({self.kind}, pts={self.pts_us / 1e6:.2f} s, utterance={self.utterance},"
            f" sequence={self.sequence}, {self.content} of {self.box.width} x {self.box.height},"
            f" avatar_frame={self.avatar_frame}, {len(self.jpeg)} bytes{said})"
        )


class AudioFrame(msgspec.Struct, frozen=True, kw_only=True):
    """Sound that came from the client, on the pictures' clock (``echo_audio``).

    Attributes:
        pcm: 16-bit little-endian samples, mono, at the rate that the client sends.
        pts_us: when to play its first sample, microseconds from the session's start.
        utterance, sequence: as of a frame.
    """

    pcm: bytes
    pts_us: int
    utterance: int
    sequence: int

    @property
    def pts(self) -> Fraction:
        """When to play its first sample, seconds from the session's start."""
        return Fraction(self.pts_us, 1_000_000)

    def __repr__(self) -> str:
        return (
            f"AudioFrame(pts={self.pts_us / 1e6:.2f} s, utterance={self.utterance},"
            f" sequence={self.sequence}, {len(self.pcm)} bytes)"
        )


Event: TypeAlias = (
    VideoFrame
    | AudioFrame
    | SessionStarted
    | UtteranceStarted
    | UtteranceEnded
    | SessionInterrupted
    | SessionOverloaded
    | ErrorMessage
    | Stats
    | Pong
)


def media_event(data: bytes) -> VideoFrame | AudioFrame:
    """A binary message of the server as an event.

    Raises:
        ProtocolError: it is none of lipsync.v1.
    """
    header, payload = unpack_media(data)
    if header.type == MediaType.AUDIO:
        return AudioFrame(
            pcm=bytes(payload),
            pts_us=header.pts_us,
            utterance=header.utterance,
            sequence=header.sequence,
        )
    if header.type not in (MediaType.FRAME, MediaType.MOUTH):
        raise ProtocolError(f"media message of type {header.type}")
    return VideoFrame(
        jpeg=bytes(payload),
        content="frame" if header.type == MediaType.FRAME else "mouth",
        box=header.box,
        pts_us=header.pts_us,
        avatar_frame=header.avatar_frame,
        utterance=header.utterance,
        sequence=header.sequence,
        flags=header.flags,
    )
