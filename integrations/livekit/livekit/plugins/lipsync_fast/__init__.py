# SPDX-License-Identifier: Apache-2.0
"""A face for LiveKit's voice agents, made by a lipsync-fast server."""

import logging

from livekit.agents import Plugin
from livekit.plugins.lipsync_fast.avatar import AvatarSession
from livekit.plugins.lipsync_fast.generator import LipsyncFastGenerator
from livekit.plugins.lipsync_fast.remote import RemoteAvatarSession, ServiceError
from livekit.plugins.lipsync_fast.worker import JoinError, be_avatar, join

__all__ = [
    "AvatarSession",
    "JoinError",
    "LipsyncFastGenerator",
    "RemoteAvatarSession",
    "ServiceError",
    "be_avatar",
    "join",
]
__version__ = "0.1.0"


class _LipsyncFastPlugin(Plugin):
    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__ or "", logging.getLogger(__name__))


Plugin.register_plugin(_LipsyncFastPlugin())
