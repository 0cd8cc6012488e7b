# SPDX-License-Identifier: Apache-2.0
"""lipsync.v1, the native stream: its text messages and its media header, for servers and clients.

Text messages are JSON objects whose ``type`` names them; binary messages are media (from the
server, behind ``MediaHeader``) or PCM (from the client, bare). ``docs/protocol.md`` tells the whole
conversation; ``docs/lipsync.v1.schema.json`` is made from these types.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from lipsync_fast_client.errors import ErrorCode, ProtocolError, UnsupportedAudioError
from lipsync_fast_client.geometry import EMPTY, Rect

SUBPROTOCOL = "lipsync.v1"
MAGIC = b"LSF1"
MOST_TEXT = 4_000
"""Characters that are said as one utterance."""
MIN_RATE, MAX_RATE = 8_000, 192_000
MIN_BITRATE, MAX_BITRATE = 50_000, 50_000_000


# ---------------------------------------------------------------- client to server
class AudioFormat(msgspec.Struct, kw_only=True, frozen=True):
    """The PCM that the client sends: interleaved little-endian samples."""

    sample_rate: Annotated[int, Meta(ge=MIN_RATE, le=MAX_RATE)] = 16_000
    format: Literal["s16le", "f32le"] = "s16le"
    channels: Annotated[int, Meta(ge=1, le=2)] = 1


class VideoFormat(msgspec.Struct, kw_only=True, frozen=True):
    """The pictures that the client wants.

    Attributes:
        content: whole frames, or the face rectangle alone.
        codec: each picture by itself, or a stream of H.264 (of whole frames).
        quality: of the pictures; of JPEGs the avatar's own by default.
        max_width: wider frames are scaled down to it; only with content "frame".
        bitrate: bits a second that a stream of H.264 may have, on the average of a second.
    """

    content: Literal["frame", "mouth"] = "frame"
    codec: Literal["jpeg", "h264"] = "jpeg"
    quality: Annotated[int, Meta(ge=1, le=100)] | None = None
    max_width: Annotated[int, Meta(ge=16, le=8192)] | None = None
    bitrate: Annotated[int, Meta(ge=MIN_BITRATE, le=MAX_BITRATE)] | None = None

    def __post_init__(self) -> None:
        if self.codec == "h264" and self.content != "frame":
            raise ValueError("codec h264 is of whole frames: content must be frame")
        if self.codec != "h264" and self.bitrate is not None:
            raise ValueError("bitrate is for codec h264; a JPEG has a quality")


class FromClient(msgspec.Struct, tag_field="type", kw_only=True, frozen=True):
    """Base of what clients send. Unknown fields are ignored, so that fields can be added."""


class SessionStart(FromClient, tag="session.start", kw_only=True, frozen=True):
    """Begin the session; the first message of a connection.

    Attributes:
        avatar: its name; the server's default when empty.
        pace: "live" shows frames in real time; "burst" sends each as soon as it is made.
        idle: show the avatar between utterances too (only with pace "live").
        echo_audio: send the sound back, on the pictures' clock.
        pictures: send pictures; without, sound and messages alone come.
    """

    avatar: Annotated[str, Meta(max_length=200)] = ""
    audio: AudioFormat = AudioFormat()
    video: VideoFormat = VideoFormat()
    pace: Literal["live", "burst"] = "live"
    idle: bool = True
    echo_audio: bool = False
    pictures: bool = True


class UtteranceEnd(FromClient, tag="utterance.end", kw_only=True, frozen=True):
    """The end of what is spoken; without it, the last frames wait for more sound."""


class UtteranceSay(FromClient, tag="utterance.say", kw_only=True, frozen=True):
    """Say something whole, as an utterance of its own: one of ``name`` and ``text``.

    Attributes:
        name: what was pre-rendered for the avatar under it.
        text: to be spoken by the server's speech synthesis, where it has one.
        voice: of that; the usual one where empty.
    """

    name: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET
    text: Annotated[str, Meta(min_length=1, max_length=MOST_TEXT)] | UnsetType = UNSET
    voice: Annotated[str, Meta(max_length=200)] = ""

    def __post_init__(self) -> None:
        if (self.name is UNSET) == (self.text is UNSET):
            raise ValueError("Expected one of `name` and `text`")


class SessionInterrupt(FromClient, tag="session.interrupt", kw_only=True, frozen=True):
    """Drop all that is to be said, at once."""


class SessionUpdate(FromClient, tag="session.update", kw_only=True, frozen=True):
    """Change what is given; between utterances at once, else behind the one being spoken.

    Attributes:
        pictures: send them, or none from now on: always at once.
    """

    avatar: Annotated[str, Meta(max_length=200)] | None = None
    video: VideoFormat | None = None
    pictures: bool | None = None


class VideoKeyframe(FromClient, tag="video.keyframe", kw_only=True, frozen=True):
    """Send a key frame soon; without effect on JPEGs, each of which is one."""


class SessionStop(FromClient, tag="session.stop", kw_only=True, frozen=True):
    """End the session; what is left is not sent."""


class Ping(FromClient, tag="ping", kw_only=True, frozen=True):
    """Answered by pong with the same id."""

    id: Annotated[str, Meta(max_length=200)] | int | None = None


# ---------------------------------------------------------------- server to client
class FromServer(msgspec.Struct, tag_field="type", kw_only=True, frozen=True):
    """Base of what the server sends."""


class SessionStarted(FromServer, tag="session.started", kw_only=True, frozen=True):
    """The session has begun, or has changed by session.update.

    Attributes:
        session: a name for logs.
        width, height: of the pictures' full frame, as scaled for the client.
        bounds: the face rectangle in the first frame: x, y, width and height.
        latency_ms: from a sound to the picture that shows it, as planned.
        codec: of the pictures, where they are no JPEGs.
        text: whether the server can say text (``utterance.say``).
    """

    session: str
    avatar: str
    width: int
    height: int
    fps: int
    bounds: Rect
    latency_ms: float
    codec: Literal["h264"] | UnsetType = UNSET
    text: bool | UnsetType = UNSET


class UtteranceStarted(FromServer, tag="utterance.started", kw_only=True, frozen=True):
    """The utterance's first frame follows."""

    utterance: int


class UtteranceEnded(FromServer, tag="utterance.ended", kw_only=True, frozen=True):
    """All of its frames were sent; ``dropped`` of ``frames`` were not.

    Attributes:
        reason: "end": the client has said so; "quiet": the server has ended it, since no more sound
            came for too long, or no more may be said.
        left_out: frames that were not made, on purpose: the server is short of time, or the
            client's clock is fast. They are not among those dropped.
    """

    utterance: int
    frames: int
    dropped: int
    reason: Literal["end", "quiet"] = "end"
    left_out: int = 0


class SessionInterrupted(FromServer, tag="session.interrupted", kw_only=True, frozen=True):
    """No frame of what was said before comes behind this; ``last_frame`` was the last one sent."""

    last_frame: int


class SessionOverloaded(FromServer, tag="session.overloaded", kw_only=True, frozen=True):
    """The utterance that begins is not spoken: too many speak already, or the client has used up
    what it may. Its sound is dropped.

    Attributes:
        code: "over_quota" where it is the client's own limit.
    """

    retry_after_ms: int
    message: str = ""
    code: Literal["over_quota"] | UnsetType = UNSET


class ErrorMessage(FromServer, tag="error", kw_only=True, frozen=True):
    """Something went wrong; when fatal, the server closes the connection."""

    code: ErrorCode
    message: str
    fatal: bool


class Stats(FromServer, tag="stats", kw_only=True, frozen=True):
    """How the session does: sent every 5 seconds, and when frames were skipped.

    Attributes:
        frames: sent; late: not ready in time; skipped: not sent, since the client reads slowly.
        queued_ms: sound that waits to be spoken.
        latency_ms: from a spoken frame's last needed sample to its bytes being sent, of the last
            one; null before there was one.
        fps: pictures a second of what is spoken now: 12.5 while the server is short of time.
        left_out: frames that were not made, on purpose.
    """

    frames: int
    late: int
    skipped: int
    queued_ms: float
    latency_ms: float | None = None
    fps: float = 25.0
    left_out: int = 0


class Pong(FromServer, tag="pong", kw_only=True, frozen=True):
    """The answer to a ping."""

    id: str | int | None = None


class _StartOfAnyAudio(SessionStart, tag="session.start", kw_only=True, frozen=True):
    audio: Any = None


_BesidesStart: TypeAlias = (
    UtteranceEnd
    | UtteranceSay
    | SessionInterrupt
    | SessionUpdate
    | VideoKeyframe
    | SessionStop
    | Ping
)
ClientMessage: TypeAlias = SessionStart | _BesidesStart
ServerMessage: TypeAlias = (
    SessionStarted
    | UtteranceStarted
    | UtteranceEnded
    | SessionInterrupted
    | SessionOverloaded
    | ErrorMessage
    | Stats
    | Pong
)
_encoder = msgspec.json.Encoder()
_from_client = msgspec.json.Decoder(ClientMessage)
_from_client_of_any_audio = msgspec.json.Decoder(_StartOfAnyAudio | _BesidesStart)
_from_server = msgspec.json.Decoder(ServerMessage)


MOST_WORDS = 500
"""Characters of an error: a peer's own words may stand in it, of any length."""


def _words(error: Exception) -> str:
    words = str(error) or "nested too deeply"
    words = "".join(c if c.isprintable() else "?" for c in words)  # one line, whatever it quotes
    if len(words) <= MOST_WORDS:
        return words
    return f"{words[: MOST_WORDS // 2]} … {words[-MOST_WORDS // 2 :]}"


def encode(message: ClientMessage | ServerMessage) -> str:
    """A message as JSON text."""
    return _encoder.encode(message).decode()


def decode_client(text: str) -> ClientMessage:
    """What a client said.

    Raises:
        UnsupportedAudioError: it is no message for its ``audio``.
        ProtocolError: it is no message of lipsync.v1; says what is wrong with it.
    """
    try:
        message: ClientMessage = _from_client.decode(text)
        return message
    except msgspec.ValidationError as error:
        of_audio = _fault_of_any_audio(text) != str(error)
        raise (UnsupportedAudioError if of_audio else ProtocolError)(_words(error)) from None
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
        raise ProtocolError(_words(error)) from None


def _fault_of_any_audio(text: str) -> str:
    """What is wrong with a client's message besides its ``audio``; '' for nothing.

    Only one fault of a message is told, the first: it is the audio's if it goes with the audio.
    """
    try:
        _from_client_of_any_audio.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        return str(error)
    return ""


def decode_server(text: str) -> ServerMessage:
    """What a server said.

    Raises:
        ProtocolError: it is no message of lipsync.v1.
    """
    try:
        message: ServerMessage = _from_server.decode(text)
        return message
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
        raise ProtocolError(_words(error)) from None


# ---------------------------------------------------------------- media
class MediaType(IntEnum):
    """What a binary message of the server holds."""

    FRAME = 1
    MOUTH = 2
    AUDIO = 3
    H264 = 4


class MediaFlag(IntFlag):
    """What a frame is."""

    NONE = 0
    IDLE = 1
    FIRST = 2
    LAST = 4
    REPEATED = 8
    KEY = 16


class MediaHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before a payload (little-endian, 40 bytes).

    Attributes:
        type: frame, mouth, audio (s16le, mono, at the rate that the client sends), or an access
            unit of H.264 (Annex B) with the whole frame.
        flags: MediaFlag bits.
        sequence: number of the message in the session.
        utterance: whose sound it shows; 0 for none.
        pts_us: presentation time, microseconds from the session's start.
        avatar_frame: index of the avatar's frame under the picture.
        box: where the picture lies in the full frame: x, y, width and height.
        size: bytes of payload.
    """

    type: MediaType
    flags: MediaFlag = MediaFlag.NONE
    sequence: int = 0
    utterance: int = 0
    pts_us: int = 0
    avatar_frame: int = 0
    box: Rect = EMPTY
    size: int = 0


_LAYOUT = struct.Struct("<4sBBHIIQI4HI")
HEADER_SIZE = _LAYOUT.size
assert HEADER_SIZE == 40


def pack_media(header: MediaHeader) -> bytes:
    """The header's 40 bytes; numbers wrap at their width."""
    box = header.box
    return _LAYOUT.pack(
        MAGIC,
        header.type,
        header.flags,
        HEADER_SIZE,
        header.sequence & 0xFFFF_FFFF,
        header.utterance & 0xFFFF_FFFF,
        header.pts_us,
        header.avatar_frame,
        box.x,
        box.y,
        box.width,
        box.height,
        header.size,
    )


def unpack_media(data: bytes | memoryview) -> tuple[MediaHeader, memoryview]:
    """Header and payload (in place) of a binary message of the server.

    Raises:
        ProtocolError: it is none, or its lengths lie.
    """
    view = memoryview(data)
    if len(view) < HEADER_SIZE or view[:4] != MAGIC:
        raise ProtocolError("not a media message of lipsync.v1")
    _, kind, flags, length, sequence, utterance, pts, avatar_frame, x, y, w, h, size = (
        _LAYOUT.unpack_from(view)
    )
    if length < HEADER_SIZE or len(view) != length + size:
        raise ProtocolError(f"media message of {len(view)} bytes says {length} + {size}")
    try:
        kind = MediaType(kind)
    except ValueError:
        raise ProtocolError(f"media message of type {kind}") from None
    header = MediaHeader(
        type=kind,
        flags=MediaFlag(flags),
        sequence=sequence,
        utterance=utterance,
        pts_us=pts,
        avatar_frame=avatar_frame,
        box=Rect(x, y, w, h),
        size=size,
    )
    return header, view[length:]
