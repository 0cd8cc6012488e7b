# SPDX-License-Identifier: Apache-2.0
"""Answers in JSON."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from lipsync_fast.errors import LipsyncError
from lipsync_fast.names import json_bytes
from lipsync_fast.rounding import rounded


class Problem(msgspec.Struct):
    """The body of an answer that is an error."""

    error: str


class Ticket(msgspec.Struct):
    """The answer of /v1/tickets: good for one WebSocket, within ``expires_s`` seconds."""

    ticket: str
    expires_s: int


def as_json(body: msgspec.Struct, status: int = 200, **headers: str) -> Response:
    """An answer; a header's name has _ for -."""
    headers = {"Cache-Control": "no-store"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return Response(json_bytes(rounded(body)), status, headers, "application/json")


def problem(status: int, error: str | LipsyncError) -> Response:
    """An answer that says what is wrong."""
    return as_json(Problem(str(error)), status)
