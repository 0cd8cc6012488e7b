# SPDX-License-Identifier: Apache-2.0
"""Ranges and ETags of what the HTTP port gives."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from lipsync_fast.errors import UnsatisfiableRangeError
from lipsync_fast.frontend.http.content import Content, answer, parse_range

DATA = bytes(range(256)) * 600  # more than two pieces


def get(method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """What is answered to a request with these headers."""
    named = {k.replace("_", "-").lower(): v for k, v in headers.items()}
    raw = [(k.encode(), v.encode()) for k, v in named.items()]
    request = Request({"type": "http", "method": method, "path": "/", "headers": raw})
    content = Content(memoryview(DATA), "video/mp4", '"tag"')
    sent = []

    async def send(message) -> None:
        sent.append(message)

    async def receive():
        await trio.sleep_forever()

    trio.run(answer(request, content), request.scope, receive, send)
    told = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], told, b"".join(m.get("body", b"") for m in sent[1:])


def test_whole() -> None:
    status, headers, body = get()
    assert (status, body) == (200, DATA)
    assert headers["content-length"] == str(len(DATA))
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"] == '"tag"'


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-", 5, len(DATA) - 1),
        ("bytes=-7", len(DATA) - 7, len(DATA) - 1),
        (f"bytes=-{len(DATA) * 2}", 0, len(DATA) - 1),
        ("bytes=100-99999999", 100, len(DATA) - 1),
        ("bytes=1000-140000", 1000, 140_000),
    ],
)
def test_a_range(asked: str, first: int, last: int) -> None:
    status, headers, body = get(Range=asked)
    assert (status, body) == (206, DATA[first : last + 1])
    assert headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=-0", "bytes=999999999-"])
def test_a_range_outside(asked: str) -> None:
    status, headers, body = get(Range=asked)
    assert (status, body) == (416, b"")
    assert headers["content-range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("asked", ["bytes=9-5", "lines=1-2", "bytes=", "bytes=-", "bytes=1-2,5-6"])
def test_a_range_that_is_none_is_answered_with_all(asked: str) -> None:
    assert get(Range=asked)[::2] == (200, DATA)


def test_a_range_of_another_version_is_answered_with_all() -> None:
    assert get(Range="bytes=0-9", If_Range='"old"')[::2] == (200, DATA)
    assert get(Range="bytes=0-9", If_Range='"tag"')[::2] == (206, DATA[:10])
    assert get(Range="bytes=0-9", If_Range="Tue, 24 Nov 2026 00:00:00 GMT")[0] == 200


def test_what_is_known_is_not_sent_again() -> None:
    for known in ('"tag"', '"a", "tag"', 'W/"tag"', "*"):
        status, headers, body = get(If_None_Match=known)
        assert (status, body) == (304, b"")
        assert headers["etag"] == '"tag"'
    assert get(If_None_Match='"other"')[0] == 200


def test_head_has_no_body() -> None:
    status, headers, body = get("HEAD", Range="bytes=3-8")
    assert (status, body) == (206, b"")
    assert headers["content-length"] == "6"


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d{0,20}-\d{0,20}"), st.integers(0, 5000))
def test_any_range_header(value: str, size: int) -> None:
    try:
        span = parse_range(value, size)
    except UnsatisfiableRangeError:
        return
    if span is not None:
        assert 0 <= span[0] < span[1] <= size
