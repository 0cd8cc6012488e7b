# SPDX-License-Identifier: Apache-2.0
"""What a client of lipsync.v1 may be told, and raise: the root of ``lipsync_fast.errors``' tree."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

ErrorCode: TypeAlias = Literal[
    "bad_request",
    "unknown_avatar",
    "unknown_utterance",
    "speech_failed",
    "unsupported_audio",
    "unsupported_video",
    "too_large",
    "overloaded",
    "unauthorized",
    "token_expired",
    "forbidden",
    "over_quota",
    "engine_lost",
    "internal",
]
"""The words of lipsync.v1 for what went wrong."""


class LipsyncError(Exception):
    """Base of every error that lipsync-fast, server or client, raises on purpose."""


class ReportedError(LipsyncError):
    """Base of what a server reports to its client by a word of the protocol; others are "internal".

    Attributes:
        code: the word.
    """

    code: ClassVar[ErrorCode]


class ProtocolError(ReportedError):
    """A peer sent what lipsync.v1 does not allow."""

    code: ClassVar[ErrorCode] = "bad_request"


class UnsupportedAudioError(ProtocolError):
    """A client wants to send sound of a form that is not taken."""

    code: ClassVar[ErrorCode] = "unsupported_audio"


class AudioFormatError(LipsyncError, ValueError):
    """PCM given by a caller has a shape, type or rate that cannot be used."""


class SessionError(LipsyncError):
    """A session with a server could not begin, or has ended as nobody wished.

    Attributes:
        code: a word of the protocol's (``ErrorCode``), or "connection": the server could not be
            reached, or has gone.
        retry_after_s: when to try again, where the server said so.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after_s = code, retry_after_s
