# SPDX-License-Identifier: Apache-2.0
"""The client of a lipsync-fast server, for trio and asyncio.

>>> from lipsync_fast_client import connect, VideoFrame
>>> async with connect("ws://127.0.0.1:8084") as session:  # doctest: +SKIP
...     await session.send(pcm)
...     async for event in session:
...         ...

A ``Session`` gives events (``Event`` is any of them): ``VideoFrame`` and ``AudioFrame``, the
server's messages under their class names, and, where the session may reconnect, ``ConnectionLost``
and ``Reconnected``. ``protocol`` holds all messages of lipsync.v1, for servers too.

Importing the package loads nothing; what is named is loaded then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lipsync_fast_client.version import __version__

if TYPE_CHECKING:
    from lipsync_fast_client.connecting import Connecting, connect
    from lipsync_fast_client.errors import (
        AudioFormatError,
        ErrorCode,
        LipsyncError,
        ProtocolError,
        SessionError,
    )
    from lipsync_fast_client.events import (
        AudioFrame,
        ConnectionLost,
        Event,
        Reconnected,
        VideoFrame,
    )
    from lipsync_fast_client.geometry import Rect
    from lipsync_fast_client.protocol import (
        ErrorMessage,
        Pong,
        SessionInterrupted,
        SessionOverloaded,
        SessionStarted,
        Stats,
        UtteranceEnded,
        UtteranceStarted,
    )
    from lipsync_fast_client.session import Session

__all__ = [
    "AudioFormatError",
    "AudioFrame",
    "Connecting",
    "ConnectionLost",
    "ErrorCode",
    "ErrorMessage",
    "Event",
    "LipsyncError",
    "Pong",
    "ProtocolError",
    "Reconnected",
    "Rect",
    "Session",
    "SessionError",
    "SessionInterrupted",
    "SessionOverloaded",
    "SessionStarted",
    "Stats",
    "UtteranceEnded",
    "UtteranceStarted",
    "VideoFrame",
    "__version__",
    "connect",
]

_PLACES = {
    "connecting": {"Connecting", "connect"},
    "errors": {"AudioFormatError", "ErrorCode", "LipsyncError", "ProtocolError", "SessionError"},
    "events": {"AudioFrame", "ConnectionLost", "Event", "Reconnected", "VideoFrame"},
    "geometry": {"Rect"},
    "session": {"Session"},
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lipsync_fast_client' has no attribute {name!r}")
    place = next((at for at, names in _PLACES.items() if name in names), "protocol")
    return getattr(import_module(f"lipsync_fast_client.{place}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
