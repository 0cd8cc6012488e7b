# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast livekit-worker``: an avatar in one room, brought from the command line."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module

from lipsync_fast.console import say
from lipsync_fast.errors import LipsyncError, ServerError

TOKEN, ROOM_TOKEN = "LIPSYNC_FAST_TOKEN", "LIVEKIT_TOKEN"
"""Variables: tokens stand in no command line, where others of the machine can read them."""
NEEDED = "livekit-plugins-lipsync-fast: pip install ./client ./integrations/livekit in a checkout"


def livekit_worker_command(livekit_url: str, url: str, avatar: str, max_width: int | None) -> None:
    """Join a room, and stay until the agent leaves.

    Raises:
        LipsyncError: the plug-in or a token is missing, or the room cannot be joined.
    """
    room_token = os.environ.get(ROOM_TOKEN, "")
    if not room_token:
        raise ServerError(
            f"{ROOM_TOKEN} is not set: the token with which the avatar enters the room"
        )
    try:
        join = import_module("livekit.plugins.lipsync_fast").join
    except ImportError:
        raise ServerError(f"livekit-worker needs {NEEDED}") from None
    try:
        why = asyncio.run(
            join(
                livekit_url,
                room_token,
                on_joined=lambda: say("joined"),
                url=url,
                token=os.environ.get(TOKEN, ""),
                avatar=avatar,
                max_width=max_width,
            )
        )
    except ValueError as error:
        raise LipsyncError(str(error)) from None
    say(f"left: {why}")
