# SPDX-License-Identifier: Apache-2.0
"""lipsync-fast: speech to lip-synced video of an avatar.

>>> import lipsync_fast
>>> with lipsync_fast.open("demo") as avatar:  # doctest: +SKIP
...     for frame in avatar.render("speech.wav"):
...         frame.image, frame.jpeg, frame.pts

>>> async with lipsync_fast.connect("ws://127.0.0.1:8084") as session:  # doctest: +SKIP
...     await session.send(pcm)
...     async for event in session:
...         ...

Importing the package loads nothing heavy; ``open`` and ``connect`` do. What they raise is a
``LipsyncError``; ``lipsync_fast.errors`` has the whole tree.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lipsync_fast.version import __version__

# ONNX Runtime's wheels report to their maker, and write a file for it, unless they are told not to
# before they are loaded. Whoever loads them by way of this package runs this first; a value that
# the user has chosen stays.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from lipsync_fast import client, errors
    from lipsync_fast.api import Avatar, RenderedFrame, Rendering, open
    from lipsync_fast.client import connect
    from lipsync_fast.errors import (
        AudioFormatError,
        AvatarError,
        AvatarFormatError,
        AvatarNotFoundError,
        AvatarVersionError,
        BackendError,
        LipsyncError,
        MediaError,
        SessionError,
    )

__all__ = [
    "AudioFormatError",
    "Avatar",
    "AvatarError",
    "AvatarFormatError",
    "AvatarNotFoundError",
    "AvatarVersionError",
    "BackendError",
    "LipsyncError",
    "MediaError",
    "RenderedFrame",
    "Rendering",
    "SessionError",
    "__version__",
    "client",
    "connect",
    "errors",
    "open",
]


def __getattr__(name: str) -> Any:
    if name in ("Avatar", "RenderedFrame", "Rendering", "open"):
        from lipsync_fast import api

        return getattr(api, name)
    if name in ("client", "connect"):
        client = import_module("lipsync_fast.client")
        return client if name == "client" else client.connect
    if name == "errors" or (name.endswith("Error") and name in __all__):
        errors = import_module("lipsync_fast.errors")
        return errors if name == "errors" else getattr(errors, name)
    raise AttributeError(f"module 'lipsync_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
