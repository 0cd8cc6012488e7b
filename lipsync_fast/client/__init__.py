# SPDX-License-Identifier: Apache-2.0
"""The client of a running server, for trio and asyncio: ``lipsync_fast.connect``.

``docs/protocol.md`` has an example, and says what comes when. A ``Session`` gives events (``Event``
is any of them): ``VideoFrame`` and ``AudioFrame``, and the server's messages under their class
names.
"""

from lipsync_fast.client.connecting import Connecting, connect
from lipsync_fast.client.events import AudioFrame, Event, VideoFrame
from lipsync_fast.client.session import Session
from lipsync_fast.errors import SessionError
from lipsync_fast.protocol import (
    ErrorMessage,
    Pong,
    SessionInterrupted,
    SessionOverloaded,
    SessionStarted,
    Stats,
    UtteranceEnded,
    UtteranceStarted,
)

__all__ = [
    "AudioFrame",
    "Connecting",
    "ErrorMessage",
    "Event",
    "Pong",
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
