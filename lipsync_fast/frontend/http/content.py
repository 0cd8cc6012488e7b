# SPDX-License-Identifier: Apache-2.0
"""Bytes that do not change, as an answer: whole or a range of them, or not at all where known."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lipsync_fast.errors import UnsatisfiableRangeError

PIECE = 64 << 10
_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes and what they are.

    Attributes:
        data: all of them.
        type: the media type.
        etag: differs when they do; with its quotes.
        cache: the Cache-Control header.
    """

    data: memoryview | bytes
    type: str
    etag: str
    cache: str = "no-cache"


def etag_of(data: memoryview | bytes) -> str:
    """A strong ETag, by the bytes themselves."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """A Range header's first byte and the one behind its last; None where all are to be sent.

    Several ranges, other units and what cannot be read are answered with the whole, as allowed.

    Raises:
        UnsatisfiableRangeError: no byte lies in it.
    """
    match = _RANGE.match(value.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        last = int(match[2])
        if last == 0 or size == 0:
            raise UnsatisfiableRangeError
        return max(0, size - last), size
    first = int(match[1])
    if match[2] and int(match[2]) < first:
        return None
    if first >= size:
        raise UnsatisfiableRangeError
    return first, min(int(match[2]) + 1, size) if match[2] else size


def answer(request: Request, content: Content) -> Response:
    """The answer to a GET or HEAD: 200, 206, 304 or 416."""
    headers = {"ETag": content.etag, "Cache-Control": content.cache, "Accept-Ranges": "bytes"}
    size = len(content.data)
    if _matches(request.headers.get("If-None-Match"), content.etag):
        return Response(status_code=304, headers=headers)
    status, first, end = 200, 0, size
    wanted = request.headers.get("Range")
    if wanted is not None and request.headers.get("If-Range", content.etag) == content.etag:
        try:
            span = parse_range(wanted, size)
        except UnsatisfiableRangeError:
            headers["Content-Range"] = f"bytes */{size}"
            return Response(status_code=416, headers=headers)
        if span is not None:
            status, (first, end) = 206, span
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - first)
    body = memoryview(content.data)[first:end] if request.method != "HEAD" else memoryview(b"")
    return _Pieces(body, status, headers, content.type)


class _Pieces(Response):
    """Bytes that are sent piece by piece, each when the one before has left.

    Not Starlette's StreamingResponse: it waits for the client's disconnection beside sending, and
    when the server itself ends the connection with the last piece, it is cancelled in doing so, and
    the connection stays open.
    """

    def __init__(
        self, body: memoryview, status: int, headers: dict[str, str], media_type: str
    ) -> None:
        self._pieces = body
        super().__init__(None, status, headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        size = len(self._pieces)
        for start in range(0, max(size, 1), PIECE):
            piece = bytes(self._pieces[start : start + PIECE])
            more = start + PIECE < size
            await send({"type": "http.response.body", "body": piece, "more_body": more})


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    known = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in known or etag in known
