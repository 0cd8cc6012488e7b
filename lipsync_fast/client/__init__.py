# SPDX-License-Identifier: Apache-2.0
"""The client of a running server, for trio and asyncio: ``lipsync_fast.connect``.

``docs/protocol.md`` has an example, and says what comes when. The client is a package of its own,
``lipsync_fast_client``, which installs anywhere; its names are these.
"""

from lipsync_fast_client import (
    AudioFrame,
    Connecting,
    ConnectionLost,
    ErrorMessage,
    Event,
    Pong,
    Reconnected,
    Session,
    SessionError,
    SessionInterrupted,
    SessionOverloaded,
    SessionStarted,
    Stats,
    UtteranceEnded,
    UtteranceStarted,
    VideoFrame,
    connect,
)

__all__ = [
    "AudioFrame",
    "Connecting",
    "ConnectionLost",
    "ErrorMessage",
    "Event",
    "Pong",
    "Reconnected",
    "Session",
    "SessionError",
    "SessionInterrupted",
    "SessionOverloaded",
    "SessionStarted",
    "Stats",
    "UtteranceEnded",
    "UtteranceStarted",
    "VideoFrame",
    "connect",
]
