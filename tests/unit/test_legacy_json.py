# SPDX-License-Identifier: Apache-2.0
"""Text messages of the old protocols: what is read of them, and what of it when they are wrong."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.errors import LegacyRequestError
from lipsync_fast.frontend.legacy.json_messages import (
    MOST_BATCH,
    Asked,
    InferenceFailure,
    Metadata,
    UnknownType,
    encode,
    parse,
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
FIELDS = [
    "type", "model_name", "frame_id", "video_type", "request_id", "audio_override", "batch_frames",
]  # fmt: skip


def test_a_request_for_a_picture() -> None:
    audio = bytes(range(40))
    text = json.dumps(
        {
            "model_name": "demo",
            "frame_id": 4_000_000_000,
            "audio_override": base64.b64encode(audio).decode(),
            "request_id": "r-1",
            "new_in_some_version": {"a": [1, 2]},
        }
    )
    assert parse(text) == Asked(
        "inference", "demo", 4_000_000_000, "full_body", "r-1", audio, (), None
    )


@pytest.mark.parametrize("text", ["{}", '{"type":null}', '{"type":""}', '{"type":"inference"}'])
def test_no_type_asks_for_a_picture(text: str) -> None:
    assert parse(text) == Asked()


def test_a_batch() -> None:
    asked = parse('{"batch_frames":[{"frame_id":3},{"frame_id":9,"x":1},{}],"request_id":8}')
    assert (asked.type, asked.frame_ids, asked.request_id) == ("batch", (3, 9, 0), 8)
    assert parse('{"batch_frames":[]}').type == "batch"


@pytest.mark.parametrize(
    "text",
    [
        '{"audio_override":"!"}',
        '{"audio_override":"AAA"}',
        '{"audio_override":5}',
        '{"model_name":7}',
        '{"model_name":["demo"]}',
        '{"type":5}',
        '{"batch_frames":5}',
        '{"batch_frames":[5]}',
        '{"batch_frames":[{"frame_id":"x"}]}',
        json.dumps({"batch_frames": [{}] * (MOST_BATCH + 1)}),
        json.dumps({"batch_frames": [{"frame_id": 10**30}] * 3000}),
    ],
)
def test_wrong_fields_keep_the_right_ones(text: str) -> None:
    text = text[:-1] + ',"frame_id":41,"request_id":"mine"}'
    asked = parse(text)
    assert asked.problem
    assert (asked.frame_id, asked.request_id, asked.frame_ids) == (41, "mine", ())


@pytest.mark.parametrize("value", ["1.5", "true", '"x"', "[]", "{}", "1e400"])
def test_a_frame_id_that_is_none(value: str) -> None:
    asked = parse(f'{{"frame_id":{value},"model_name":"demo"}}')
    assert asked.problem is not None
    assert "frame_id" in asked.problem
    assert asked.model_name == "demo"


@pytest.mark.parametrize(
    ("value", "frame_id"), [("12.0", 12), ('"12"', 12), ("-3", -3), ("null", 0), ("1e3", 1000)]
)
def test_a_frame_id_in_other_words(value: str, frame_id: int) -> None:
    assert parse(f'{{"frame_id":{value}}}') == Asked(frame_id=frame_id)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "[]", "5", '"get_stats"', "null", "{", '{"type"', "{'type':1}", "\ud800", "GET / ",
        "[" * 1000, '{"a":' * 100_000, "\0",
    ],
)  # fmt: skip
def test_what_is_no_object(text: str) -> None:
    with pytest.raises(LegacyRequestError):
        parse(text)


@pytest.mark.parametrize("levels", [10, 1_000, 100_000])
def test_nested_deeply(levels: int) -> None:
    """Fields that are not ours may be as deep as they fit; ours are an error at most."""
    nested = "[" * levels + "]" * levels
    for field in ("x", *FIELDS):
        try:
            asked = parse(f'{{"{field}":{nested}}}')
        except LegacyRequestError:
            continue
        assert field == "x" or asked.problem


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(FIELDS), anything))
def test_any_values(fields: dict[str, object]) -> None:
    try:
        asked = parse(json.dumps(fields))
    except LegacyRequestError:  # NaN and Infinity are none of JSON's
        return
    assert isinstance(asked.type, str)
    assert isinstance(asked.frame_id, int)
    assert isinstance(asked.audio, bytes)
    assert len(asked.frame_ids) <= MOST_BATCH


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    with contextlib.suppress(LegacyRequestError):
        parse(text)


def test_replies_have_the_names_that_clients_read() -> None:
    assert json.loads(encode(UnknownType(error="Unknown message type: x"))) == {
        "type": "error",
        "error": "Unknown message type: x",
    }
    metadata = Metadata(
        model_name="demo",
        frame_count=5,
        available_videos=("full_body",),
        bounds=(1.5, 2.0, 3.0, 4.0),
    )
    assert json.loads(encode(metadata)) == {
        "type": "metadata",
        "success": True,
        "model_name": "demo",
        "frame_count": 5,
        "available_videos": ["full_body"],
        "audio_path": "",
        "bounds": [1.5, 2.0, 3.0, 4.0],
    }
    error = InferenceFailure(error="no", processing_time_ms=3, request_id="r", frame_id=9)
    assert json.loads(encode(error)) == {
        "success": False,
        "error": "no",
        "processing_time_ms": 3,
        "request_id": "r",
        "protocol": "json_fallback",
        "frame_id": 9,
    }
