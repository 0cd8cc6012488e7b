# SPDX-License-Identifier: Apache-2.0
"""What a session gives to whoever iterates over it."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from lipsync_fast_client.errors import ProtocolError
from lipsync_fast_client.geometry import Rect
from lipsync_fast_client.protocol import (
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

if TYPE_CHECKING:
    from PIL.Image import Image


class VideoFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of the session's video; a notebook shows it as its picture.

    Attributes:
        jpeg: the picture, encoded; nothing in a session of H.264.
        h264: its access unit (Annex B) there, for a decoder that gets all of them in their order.
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
    h264: bytes = b""

    @property
    def codec(self) -> Literal["jpeg", "h264"]:
        """What it is encoded as."""
        return "h264" if self.h264 else "jpeg"

    @property
    def key(self) -> bool:
        """It can be decoded without those before it, as every JPEG."""
        return not self.h264 or bool(self.flags & MediaFlag.KEY)

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

    @property
    def image(self) -> Image:
        """The picture, decoded anew each time: RGB, of the box's width and height. Needs Pillow.

        ``numpy.asarray`` makes an array of it, H x W x 3 uint8.

        Raises:
            ImportError: Pillow is not installed.
            ProtocolError: it cannot be decoded; by itself, none of H.264 can.
        """
        if self.h264:
            raise ProtocolError("a picture of H.264 needs a decoder that has all of its stream")
        try:
            from PIL import Image
        except ImportError:
            raise ImportError(
                "VideoFrame.image needs Pillow: pip install pillow; VideoFrame.jpeg needs nothing"
            ) from None
        try:
            with Image.open(io.BytesIO(self.jpeg), formats=("JPEG",)) as encoded:
                return encoded.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ProtocolError(f"picture {self.sequence} cannot be decoded: {error}") from None

    def _repr_jpeg_(self) -> bytes | None:
        return self.jpeg or None

    def __repr__(self) -> str:
        words = ["first", "last", "repeated"] + ["key"] * bool(self.h264)
        said = "".join(f", {word}" for word in words if getattr(self, word))
        return (
            f"VideoFrame({self.kind}, pts={self.pts_us / 1e6:.2f} s, utterance={self.utterance},"
            f" sequence={self.sequence}, {self.content} of {self.box.width} x {self.box.height},"
            f" avatar_frame={self.avatar_frame}, {len(self.h264 or self.jpeg)} bytes{said})"
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


class ConnectionLost(msgspec.Struct, frozen=True, kw_only=True):
    """The server has gone; the next event is ``Reconnected``, or an error is raised.

    Nothing of what was said before comes any more, no answer to ``interrupt`` either. What is sent
    until the server is back is dropped.

    Attributes:
        reason: in words.
        unfinished: utterances that were begun, and not shown whole: they are lost. The rest of one
            that is still being sent is dropped, until it is ended.
    """

    reason: str
    unfinished: int


class Reconnected(msgspec.Struct, frozen=True, kw_only=True):
    """A new session with the same settings; its clock, sequence and utterances begin anew.

    ``Session.started`` is what the server says of it.

    Attributes:
        attempts: that it took.
        seconds: from the loss until now.
        missed: utterances that were begun meanwhile, which nobody has heard.
    """

    attempts: int
    seconds: float
    missed: int


Event: TypeAlias = (
    VideoFrame
    | AudioFrame
    | ConnectionLost
    | Reconnected
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
    if header.type not in (MediaType.FRAME, MediaType.MOUTH, MediaType.H264):
        raise ProtocolError(f"media message of type {header.type}")
    return VideoFrame(
        jpeg=b"" if header.type == MediaType.H264 else bytes(payload),
        h264=bytes(payload) if header.type == MediaType.H264 else b"",
        content="mouth" if header.type == MediaType.MOUTH else "frame",
        box=header.box,
        pts_us=header.pts_us,
        avatar_frame=header.avatar_frame,
        utterance=header.utterance,
        sequence=header.sequence,
        flags=header.flags,
    )
