# SPDX-License-Identifier: Apache-2.0
"""The client of a running server, for trio and asyncio: ``lipsync_fast.connect``.

``docs/protocol.md`` has an example, and says what comes when.
"""

from lipsync_fast.client.connecting import Connecting, connect
from lipsync_fast.client.events import Audio, Event, Frame
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
    "Audio",
    "Connecting",
    "ErrorMessage",
    "Event",
    "Frame",
    "Pong",
    "Session",
    "SessionError",
    "SessionInterrupted",
    "SessionOverloaded",
    "SessionStarted",
    "Stats",
    "UtteranceEnded",
    "UtteranceStarted",
    "connect",
]
