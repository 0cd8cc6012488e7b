# SPDX-License-Identifier: Apache-2.0
"""An agent's face that a lipsync-fast server brings into the room: the agent sends it its sound."""

from __future__ import annotations

import os
from typing import Literal

import aiohttp
from livekit import api, rtc
from livekit.agents import AgentSession
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.voice.avatar import AvatarSession as BaseAvatarSession
from livekit.agents.voice.avatar import DataStreamAudioOutput

from lipsync_fast_client import LipsyncError

ANSWER_S = 20.0
"""How long the server may take to join the room."""
ROUTE = "/v1/livekit/sessions"


class ServiceError(LipsyncError):
    """The server does not bring an avatar; the message says why."""


class RemoteAvatarSession(BaseAvatarSession[Literal["face_lost"]]):
    """Gives an agent a face that joins its room: begin it before the agent's session.

    Pictures go from the server to the room, not by the agent's process.

    Args:
        service: where the server takes such requests (``serve --livekit-port``), ``http://…`` or
            ``https://…``; else ``LIPSYNC_FAST_LIVEKIT_SERVICE``.
        token: the server's admin token; else ``LIPSYNC_FAST_ADMIN_TOKEN``.
        avatar: its name; the server's default where empty.
        livekit_url, api_key, api_secret: of the LiveKit server; else ``LIVEKIT_URL``,
            ``LIVEKIT_API_KEY`` and ``LIVEKIT_API_SECRET``.
        identity: of the avatar in the room.
        sample_rate: of the sound that it is sent.

    Raises:
        ValueError: an argument cannot be; the message names it.
    """

    def __init__(
        self,
        *,
        service: str = "",
        token: str = "",
        avatar: str = "",
        livekit_url: str = "",
        api_key: str = "",
        api_secret: str = "",
        identity: str = "lipsync-fast-avatar",
        sample_rate: int = 24_000,
    ) -> None:
        super().__init__()
        self._service = service or os.environ.get("LIPSYNC_FAST_LIVEKIT_SERVICE", "")
        self._token = token or os.environ.get("LIPSYNC_FAST_ADMIN_TOKEN", "")
        self._livekit_url = livekit_url or os.environ.get("LIVEKIT_URL", "")
        self._key = api_key or os.environ.get("LIVEKIT_API_KEY", "")
        self._secret = api_secret or os.environ.get("LIVEKIT_API_SECRET", "")
        self._avatar, self._identity, self._rate = avatar, identity, sample_rate
        if not self._service.startswith(("http://", "https://")):
            raise ValueError(f"service {self._service!r}: expected http://… or https://…")
        for name, value in (
            ("livekit_url", self._livekit_url),
            ("api_key", self._key),
            ("api_secret", self._secret),
            ("identity", identity),
        ):
            if not value:
                raise ValueError(f"{name}: expected one")

    @property
    def avatar_identity(self) -> str:
        """That of the avatar in the room."""
        return self._identity

    @property
    def provider(self) -> str:
        """Who makes the pictures."""
        return "lipsync-fast"

    async def start(self, agent_session: AgentSession, room: rtc.Room) -> None:
        """Have the avatar come, and give it what the agent says from now on.

        Raises:
            ServiceError: the server refuses, or cannot be reached. The agent's own voice stays.
        """
        await self._ask(room)
        await super().start(agent_session, room)
        agent_session.output.replace_audio_tail(
            DataStreamAudioOutput(
                room,
                destination_identity=self._identity,
                sample_rate=self._rate,
                wait_remote_track=rtc.TrackKind.KIND_VIDEO,
                wait_playback_start=True,
            )
        )

    async def _ask(self, room: rtc.Room) -> None:
        asked = {
            "livekit_url": self._livekit_url,
            "livekit_token": self._room_token(room),
            "room_name": room.name,
            "avatar": self._avatar,
        }
        shown = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    self._service.rstrip("/").removesuffix(ROUTE) + ROUTE,
                    json=asked,
                    headers=shown,
                    allow_redirects=False,
                ) as answer,
            ):
                words = (await answer.text())[:500].strip()
                if answer.status != 201:
                    raise ServiceError(f"no avatar ({answer.status}): {words}")
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise ServiceError(f"no avatar: the server cannot be reached ({reason})") from None

    def _room_token(self, room: rtc.Room) -> str:
        """What the avatar enters the room with, in the agent's name."""
        agent = room.local_participant.identity
        return (
            api.AccessToken(self._key, self._secret)
            .with_kind("agent")
            .with_identity(self._identity)
            .with_grants(api.VideoGrants(room_join=True, room=room.name))
            .with_attributes({ATTRIBUTE_PUBLISH_ON_BEHALF: agent})
            .to_jwt()
        )
