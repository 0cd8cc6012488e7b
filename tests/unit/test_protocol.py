# SPDX-License-Identifier: Apache-2.0
"""lipsync.v1's messages: what goes out comes in, and nothing else does."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.errors import ProtocolError
from lipsync_fast.geometry import Rect
from lipsync_fast_client.protocol import (
    HEADER_SIZE,
    AudioFormat,
    ClientMessage,
    MediaFlag,
    MediaHeader,
    MediaType,
    Ping,
    ServerMessage,
    SessionStart,
    VideoFormat,
    decode_client,
    decode_server,
    encode,
    pack_media,
    unpack_media,
)

WORD, LONG = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SHORT = st.integers(0, 2**16 - 1)
CLIENT = [t.__struct_config__.tag for t in get_args(ClientMessage)]
headers = st.builds(
    MediaHeader,
    type=st.sampled_from(MediaType),
    flags=st.integers(0, 15).map(MediaFlag),
    sequence=WORD,
    utterance=WORD,
    pts_us=LONG,
    avatar_frame=WORD,
    box=st.builds(Rect, SHORT, SHORT, SHORT, SHORT),
)
things: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = ["avatar", "audio", "video", "pace", "idle", "echo_audio", "id", "sample_rate", "quality"]


@given(headers, st.binary(max_size=50))
def test_media_goes_there_and_back(header: MediaHeader, payload: bytes) -> None:
    header = msgspec.structs.replace(header, size=len(payload))
    packed = pack_media(header)
    assert len(packed) == HEADER_SIZE
    got, view = unpack_media(packed + payload)
    assert (got, bytes(view)) == (header, payload)


def test_a_longer_header_of_a_later_version_is_read() -> None:
    packed = bytearray(pack_media(MediaHeader(type=MediaType.FRAME, size=3)))
    packed[6:8] = (48).to_bytes(2, "little")
    header, payload = unpack_media(bytes(packed) + b"8 bytes." + b"jpg")
    assert (header.type, bytes(payload)) == (MediaType.FRAME, b"jpg")


@given(headers, st.binary(max_size=30), st.integers(-40, 40).filter(bool))
def test_media_whose_lengths_lie(header: MediaHeader, payload: bytes, lie: int) -> None:
    header = msgspec.structs.replace(header, size=max(0, len(payload) + lie))
    if header.size != len(payload):
        with pytest.raises(ProtocolError):
            unpack_media(pack_media(header) + payload)


@given(st.binary(max_size=100))
def test_other_bytes_are_no_media(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_media(b"x" + data)


@given(st.text(max_size=200))
def test_any_text_is_a_message_or_a_protocol_error(text: str) -> None:
    for decode in (decode_client, decode_server):
        with pytest.raises(ProtocolError):
            decode(text)


@given(st.sampled_from(CLIENT), st.dictionaries(st.sampled_from(FIELDS), things, max_size=5))
def test_fields_of_any_kind_are_taken_or_refused(kind: str, fields: dict[str, Any]) -> None:
    text = json.dumps({"type": kind, **fields})
    try:
        message = decode_client(text)
    except ProtocolError:
        return
    assert decode_client(encode(message)) == message


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"type": "session.start", "audio": ' + "[" * 1000 + "]" * 1000 + "}",
        '{"type": "ping", "id": "\ud800"}',
        '{"type": "stats"}',
        '{"type": 7}',
        "{}",
        "null",
        "",
    ],
    ids=["unclosed", "deep", "surrogate", "other side", "number", "empty", "null", "nothing"],
)
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_client(text)
    assert str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"sample_rate": 7_999}),
        ("audio", {"sample_rate": 192_001}),
        ("audio", {"channels": 3}),
        ("audio", {"format": "mp3"}),
        ("video", {"quality": 0}),
        ("video", {"quality": 101}),
        ("video", {"max_width": 15}),
        ("video", {"codec": "vp9"}),
        ("pace", "fast"),
        ("avatar", "a" * 201),
        ("idle", 1),
    ],
)
def test_values_out_of_their_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=rf"\$\.{field}") as caught:
        decode_client(json.dumps({"type": "session.start", field: value}))
    assert caught.value.code == ("unsupported_audio" if field == "audio" else "bad_request")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"type": "session.start", "audio": {"channels": 3}, "pace": "x"}', "unsupported_audio"),
        ('{"type": "session.start", "pace": "x", "audio": {"channels": 3}}', "bad_request"),
        ('{"audio": 7, "type": "session.start"}', "unsupported_audio"),
        ('{"type": "session.start", "audio": {"channels": 3}, ', "unsupported_audio"),
        ('{"type": "session.start", "audio": {"channels": ', "bad_request"),
        ('{"type": "session.start", "pace": "$.audio"}', "bad_request"),
        ('{"type": "session.update", "audio": 7, "avatar": 7}', "bad_request"),
        ('{"type": "utterance.say", "audio": 7}', "bad_request"),
        ('{"type": "utterance.say", "name": "a", "text": "b"}', "bad_request"),
    ],
)
def test_the_code_is_that_of_the_fault_that_is_told(text: str, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_client(text)
    assert caught.value.code == code


def test_unknown_fields_are_ignored() -> None:
    text = '{"type": "session.start", "more": {"x": []}, "audio": {"bits": 16}, "pace": "burst"}'
    assert decode_client(text) == SessionStart(pace="burst")


def test_defaults() -> None:
    assert decode_client('{"type": "session.start"}') == SessionStart()
    assert SessionStart().audio == AudioFormat(sample_rate=16_000, format="s16le", channels=1)
    assert SessionStart().video == VideoFormat()
    assert decode_client('{"type": "ping"}') == Ping()


def test_every_message_goes_there_and_back() -> None:
    from test_schema import ROOT, examples

    path = ROOT / "docs" / "protocol.md"
    if not path.exists():
        pytest.skip("docs/ is not here: installed without its sources")
    for example in examples(path.read_text()):
        decode = decode_client if example["type"] in CLIENT else decode_server
        message: ClientMessage | ServerMessage = decode(json.dumps(example))
        assert decode(encode(message)) == message
