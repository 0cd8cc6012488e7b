# SPDX-License-Identifier: Apache-2.0
"""What lies in the rings: jobs from a front to an engine, answers back.

A record is a header (msgspec, MessagePack) and, behind it, bulk bytes that are read where they lie:

    u16 header length | header | zeros up to a multiple of 8 | payload

    front ─► engine    Job, Cancel, Encode, EndStream
    engine ─► front    Answer

A job carries all that makes its picture, so any engine can take any job, and a job whose engine has
died goes to another one unchanged. Each job gets exactly one answer from a living engine, unless a
later ``Cancel`` of its session takes it back. The ring says who may be trusted to write; still, a
record that cannot be read is refused (``MessageError``) and costs nothing but itself.

A stream of H.264 is the one thing that an engine remembers from one record to the next; so each
``Encode`` says which access unit its client has got last, and where the engine's encoder has not
made that one last, it makes a key frame. A stream may go on at any engine, at any record.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lipsync_fast.errors import MessageError
from lipsync_fast.geometry import EMPTY, Rect
from lipsync_fast.ipc.ring import RingWriter

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
STREAM_QUALITY = 65
"""Of streams of H.264 where nobody says."""
_LENGTH = 2
_LONGEST_HEADER = 4096


class Content(IntEnum):
    """What a client wants to see."""

    FRAME = 0
    """Whole frames."""
    MOUTH = 1
    """The face rectangle alone."""
    REGION = 2
    """The generated square alone, as the network made it (manifest.region pixels wide, within the
    crop's border). The answer's box is the face rectangle that the whole crop fills."""
    PIXELS = 3
    """What of a whole frame is not the avatar's own, for ``Encode``: I420 planes. The answer's box
    is theirs, in the picture that the client gets."""


class Look(msgspec.Struct, frozen=True, array_like=True):
    """How pictures are encoded for a client; the avatar's own quality and width where None."""

    content: Content = Content.FRAME
    quality: Annotated[int, Meta(ge=1, le=100)] | None = None
    max_width: Annotated[int, Meta(ge=16, le=8192)] | None = None


class StoreMode(IntEnum):
    """What the frames that are kept (``utterances``) have to do with a frame."""

    OFF = 0
    """Nothing: it is made, and not kept."""
    LOOK_UP = 1
    """It is looked for among them; where it is not there, it is made and kept."""
    KEEP = 2
    """It is made and kept."""


class Speech(msgspec.Struct, frozen=True, array_like=True):
    """Where a frame lies in its sound; the record's payload is what it sees of that sound.

    Attributes:
        stream: a number that no other sound of this front has had.
        frame: number of the frame in the sound; before 0 and behind the end there is padding.
        samples: of the whole sound at 16 kHz, once it is known.
        first: number of the payload's first sample; the payload is float32, 16 kHz.
        share: how much of the generated mouth is shown, 0..1.
        store: whether it is looked for among the frames that are kept, and is to be kept.
    """

    stream: Count
    frame: Annotated[int, Meta(gt=-(1 << 62), lt=1 << 62)]
    samples: Count | None
    first: Count
    share: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    store: StoreMode = StoreMode.OFF


class Job(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """One picture to make.

    Attributes:
        session: number of the session in its front.
        epoch: raised when a session is interrupted; answers to older ones are dropped.
        number: the picture's number in the session.
        avatar: the name under which the engine was told to load it.
        avatar_frame: which of the avatar's frames lies under it.
        deadline_ns: on CLOCK_MONOTONIC; when it has passed, the answer is "skipped".
        look: how it is encoded.
        speech: what is said; None asks for the avatar's own picture.
    """

    session: Count
    epoch: Count
    number: Count
    avatar: Annotated[str, Meta(min_length=1, max_length=1000)]
    avatar_frame: Count
    deadline_ns: Count
    look: Look = Look()
    speech: Speech | None = None


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Jobs of a session that have not begun are dropped without an answer; this gets none either.

    Attributes:
        session: whose.
        epoch: jobs of lower ones are meant.
    """

    session: Count
    epoch: Count


class Coding(msgspec.Struct, frozen=True, array_like=True):
    """How a stream is encoded (``media.h264``).

    Attributes:
        crf: x264's constant rate factor.
        bitrate: bits that a second of it may have; None: what that takes.
        max_width: wider frames are scaled down to it.
    """

    crf: Annotated[int, Meta(ge=0, le=51)]
    bitrate: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    max_width: Annotated[int, Meta(ge=16, le=8192)] | None = None


class Encode(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The next picture of a stream of H.264; the answer's payload is its access unit.

    The payload is what a job of ``Content.PIXELS`` has given; without one it is the avatar's own
    picture.

    Attributes:
        session: number of the stream, unlike those of all sessions of this front.
        epoch: 0.
        number: of the access unit; from 1.
        after: number of the one that the client has before it; 0: it needs a key frame.
        slot: in which it is shown: what key frames are counted by, and for the avatar's own
            picture, its position in the loop.
        stride: of the slots in which nothing is said, one in so many is shown.
        avatar, avatar_frame: as in a job.
        coding: how all of the stream is encoded.
        box: where the payload lies in the picture.
    """

    session: Count
    epoch: Count
    number: Count
    after: Count
    slot: Count
    stride: Annotated[int, Meta(ge=1, le=1000)]
    avatar: Annotated[str, Meta(min_length=1, max_length=1000)]
    avatar_frame: Count
    coding: Coding
    box: Rect = EMPTY


class EndStream(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A stream has ended; this gets no answer."""

    session: Count


class Status(IntEnum):
    """What became of a job."""

    MADE = 0
    SKIPPED = 1
    """Too late to be of use."""
    FAILED = 2


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What became of a job; the payload is the JPEG when it was made.

    Attributes:
        session, epoch, number: the job's own.
        status: made, skipped or failed.
        box: where the picture lies in the avatar's frame.
        reason: why it failed, for a person.
        taken_ns, made_ns: when the engine took the job up and when it was done, CLOCK_MONOTONIC.
        kept: it was among the frames that are kept: no network ran.
        key: it is an access unit that needs none before it.
    """

    session: Count
    epoch: Count
    number: Count
    status: Status
    box: Rect = EMPTY
    reason: Annotated[str, Meta(max_length=500)] = ""
    taken_ns: Count = 0
    made_ns: Count = 0
    kept: bool = False
    key: bool = False


FromFront = Job | Cancel | Encode | EndStream
Asked = Job | Encode
"""What gets an answer."""
Header = FromFront | Answer
_encoder = msgspec.msgpack.Encoder()
_job_decoder = msgspec.msgpack.Decoder(FromFront)
_answer_decoder = msgspec.msgpack.Decoder(Answer)


def _payload_at(header: int) -> int:
    return (_LENGTH + header + 7) & ~7


def record_size(header: bytes, payload: int) -> int:
    """Bytes of a record whose header is encoded and whose payload has so many bytes."""
    return _payload_at(len(header)) + payload


def encode_header(header: Header) -> bytes:
    """A header's bytes."""
    return _encoder.encode(header)


def fill(view: memoryview, header: bytes, payload: bytes | memoryview) -> None:
    """Lay a record into ``view``, which has exactly ``record_size`` bytes."""
    start = _payload_at(len(header))
    view[:_LENGTH] = len(header).to_bytes(_LENGTH, "little")
    view[_LENGTH : _LENGTH + len(header)] = header
    view[_LENGTH + len(header) : start] = bytes(start - _LENGTH - len(header))
    view[start:] = memoryview(payload).cast("B")


def try_send(
    ring: RingWriter,
    header: Header,
    payload: bytes | memoryview = b"",
) -> bool:
    """Put a record into a ring, or nothing when it is too full now.

    Raises:
        ValueError: the record is larger than the ring.
    """
    return send(ring, header, payload, 0.0)


def send(
    ring: RingWriter,
    header: Header,
    payload: bytes | memoryview,
    timeout_s: float,
) -> bool:
    """Like ``try_send``, but wait for room for up to ``timeout_s``."""
    encoded = encode_header(header)
    size = record_size(encoded, memoryview(payload).nbytes)
    view = ring.reserve(size, timeout_s)
    if view is None:
        return False
    fill(view, encoded, payload)
    view.release()
    ring.commit(size)
    return True


def read_job(record: memoryview) -> tuple[FromFront, memoryview]:
    """Header and payload (in place) of a record from a front.

    Raises:
        MessageError: it holds no such header.
    """
    header, payload = _split(record)
    try:
        return _job_decoder.decode(header), payload
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise MessageError(f"record that is no job: {error}") from None


def read_answer(record: memoryview) -> tuple[Answer, memoryview]:
    """Header and payload (in place) of a record from an engine.

    Raises:
        MessageError: it holds no such header.
    """
    header, payload = _split(record)
    try:
        return _answer_decoder.decode(header), payload
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise MessageError(f"record that is no answer: {error}") from None


def _split(record: memoryview) -> tuple[memoryview, memoryview]:
    """The encoded header and the payload of a record."""
    length = int.from_bytes(record[:_LENGTH], "little")
    start = _payload_at(length)
    if len(record) < start or length > _LONGEST_HEADER:
        raise MessageError(f"record of {len(record)} bytes with a header of {length}")
    return record[_LENGTH : _LENGTH + length], record[start:]


def samples_of(payload: memoryview) -> NDArray[np.float32]:
    """The payload of a job with speech, as float32 samples, in place.

    Raises:
        MessageError: its size is not that of whole samples.
    """
    if len(payload) % 4:
        raise MessageError(f"{len(payload)} bytes of float32 samples")
    return np.frombuffer(payload, np.float32)


def crf_of(quality: int | None) -> int:
    """``Coding.crf`` for a quality of 1 to 100: 40 to 20."""
    return round(40 - (STREAM_QUALITY if quality is None else quality) / 5)


def scaled_size(size: tuple[int, int], max_width: int | None) -> tuple[int, int]:
    """Width and height of a frame that is scaled down to ``max_width`` where it is wider."""
    width, height = size
    if max_width is None or width <= max_width:
        return size
    return max_width, max(1, round(height * max_width / width))
