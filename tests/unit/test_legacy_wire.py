# SPDX-License-Identifier: Apache-2.0
"""Binary messages of the old protocols, against bytes written by hand."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.errors import LegacyRequestError
from lipsync_fast.frontend.legacy.wire import (
    FrameRequest,
    PlainRequest,
    pack_avatar_frame,
    pack_error,
    pack_picture,
    parse,
)

names = st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore").decode())


def request(name: bytes, frame_id: int, audio: bytes) -> bytes:
    return struct.pack("<I", len(name)) + name + struct.pack("<II", frame_id, len(audio)) + audio


def test_a_request_as_it_lies_in_the_message() -> None:
    data = bytes.fromhex("04000000 64656d6f 07000000 04000000 0102fffe")
    parsed = parse(data)
    assert isinstance(parsed, FrameRequest)
    assert (parsed.name, parsed.frame_id, bytes(parsed.audio)) == ("demo", 7, b"\1\2\xff\xfe")


@given(names, st.integers(0, 2**32 - 1), st.binary(max_size=200), st.binary(max_size=20))
def test_any_request(name: str, frame_id: int, audio: bytes, behind: bytes) -> None:
    parsed = parse(request(name.encode(), frame_id, audio) + behind)
    assert isinstance(parsed, FrameRequest)
    assert (parsed.name, parsed.frame_id, bytes(parsed.audio)) == (name, frame_id, audio)


@pytest.mark.parametrize(
    ("data", "text", "frame_id"),
    [
        (b"", "Binary message too short", 0),
        (b"\4\0\0", "Binary message too short", 0),
        (b"\xff\xff\xff\xff" + bytes(20), "Invalid model name length", 0),
        (b"\5\0\0\0demo", "Invalid model name length", 0),
        (b"\4\0\0\0demo", "Missing frame ID", 0),
        (b"\4\0\0\0demo\7\0\0", "Missing frame ID", 0),
        (b"\4\0\0\0demo\7\0\0\0", "Missing audio length", 7),
        (b"\4\0\0\0demo\7\0\0\0\1\0\0", "Missing audio length", 7),
        (b"\4\0\0\0demo\xff\xff\xff\xff\1\0\0\0", "Invalid audio data length", 2**32 - 1),
        (b"\4\0\0\0demo\7\0\0\0\xff\xff\xff\xff" + bytes(50), "Invalid audio data length", 7),
    ],
)
def test_what_is_no_request(data: bytes, text: str, frame_id: int) -> None:
    with pytest.raises(LegacyRequestError) as caught:
        parse(data)
    assert (str(caught.value), caught.value.frame_id) == (text, frame_id)


@pytest.mark.parametrize(
    ("data", "name", "frame_id"),
    [
        (b"\4demo\7\0\0\0", "demo", 7),
        (b"\4demo\xff\xff\xff\xff", "demo", -1),
        (b"\0\7\0\0\0", "", 7),
        (b"\xff" + b"n" * 255 + b"\1\0\0\0", "n" * 255, 1),
    ],
)
def test_the_one_byte_form(data: bytes, name: str, frame_id: int) -> None:
    assert parse(data) == PlainRequest(name, frame_id)


def test_a_valid_request_is_not_taken_for_the_one_byte_form() -> None:
    # 12 bytes: n = 7 in one byte, and a request with an empty name, no sound and 3 bytes behind.
    data = b"\0\0\0\0" + b"\7\0\0\0" + b"\0\0\0\0"
    assert isinstance(parse(data), FrameRequest)
    data = request(b"", 7, b"")
    assert isinstance(parse(data), FrameRequest)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    outcome: object
    try:
        outcome = parse(data)
    except LegacyRequestError as error:
        outcome = error
    if isinstance(outcome, LegacyRequestError):
        assert str(outcome)
        assert 0 <= outcome.frame_id < 2**32
    else:
        assert isinstance(outcome, FrameRequest | PlainRequest)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=99))
def test_a_picture_has_its_bounds_at_a_multiple_of_4(
    frame_id: int, milliseconds: int, jpeg: bytes
) -> None:
    reply = pack_picture(frame_id, milliseconds, jpeg, (1.5, 2.25, 3.125, 4.0))
    kind, got_id, got_ms, size = struct.unpack_from("<BIII", reply)
    assert (kind, got_id, got_ms) == (1, frame_id, milliseconds)
    at = 13 + size
    assert (at + 4) % 4 == 0 == len(reply) % 4
    assert 0 <= size - len(jpeg) <= 3
    assert reply[13:at] == jpeg.ljust(size, b"\0")
    assert struct.unpack("<I4f", reply[at:]) == (16, 1.5, 2.25, 3.125, 4.0)


def test_an_error_as_it_lies_in_the_message() -> None:
    assert pack_error(7, 9, "Zu früh") == (
        b"\0" + b"\7\0\0\0" + b"\x09\0\0\0" + b"\x08\0\0\0" + "Zu früh".encode()
    )


def test_a_frame_of_the_avatar_as_it_lies_in_the_message() -> None:
    assert pack_avatar_frame(-2, "full_body", b"JPEG") == (
        b"\2" + b"\xfe\xff\xff\xff" + b"\x09" + b"full_body" + b"\4\0\0\0" + b"JPEG"
    )
