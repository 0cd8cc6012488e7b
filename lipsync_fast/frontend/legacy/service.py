# SPDX-License-Identifier: Apache-2.0
"""The old protocols in one front: what all of their connections have in common."""

from __future__ import annotations

from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.legacy.answers import Reply
from lipsync_fast.frontend.legacy.connection import serve_legacy
from lipsync_fast.frontend.legacy.counts import LegacyCounts
from lipsync_fast.frontend.legacy.pictures import DEFAULT_NAMES
from lipsync_fast.frontend.legacy.video import AvatarVideos
from lipsync_fast.frontend.services import Services
from lipsync_fast.tokens.accounts import Visit
from lipsync_fast.tokens.subject import Subject


class LegacyService:
    """Serves old clients, and keeps what outlives one connection: counts, and avatars' videos."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._counts, self._videos = LegacyCounts(), AvatarVideos()

    async def serve(self, socket: Socket, visit: Visit, first: Reply) -> None:
        """Answer a client until it goes; ``first`` is the message that was received already."""
        await serve_legacy(socket, visit, self._services, self._counts, first)

    async def video(self, name: str, subject: Subject) -> memoryview:
        """The MP4 of an avatar's frames, for ``GET /models/{name}/video.mp4``.

        Args:
            name: of the avatar; "" and "default_model" are the default one.
            subject: who asks.

        Raises:
            AvatarNotFoundError, AvatarError: there is none of that name, or it cannot be used.
            LipsyncError: the video cannot be made.
        """
        package = self._services.avatars.peek("" if name in DEFAULT_NAMES else name, subject)
        return await self._videos.get(package)
