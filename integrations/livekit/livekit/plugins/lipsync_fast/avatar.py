# SPDX-License-Identifier: Apache-2.0
"""An agent's face, in the agent's own process: the server makes pictures, the agent shows them."""

from __future__ import annotations

import logging
import os
from typing import Literal

from livekit import rtc
from livekit.agents import AgentSession
from livekit.agents.voice.avatar import (
    AvatarOptions,
    AvatarRunner,
    QueueAudioOutput,
)
from livekit.agents.voice.avatar import (
    AvatarSession as BaseAvatarSession,
)
from livekit.plugins.lipsync_fast.generator import FPS, USUAL_SIZE, LipsyncFastGenerator

logger = logging.getLogger(__name__)


class AvatarSession(BaseAvatarSession[Literal["face_lost", "face_found"]]):
    """Gives an agent a face: begin it before the agent's session.

    The agent publishes sound and pictures itself. Where the server is gone or has too much to do,
    its sound goes on without a face: the event ``face_lost`` says why, ``face_found`` when it is
    back.

    Args:
        url: of the server's stream port, ``ws://…`` or ``wss://…``; else ``LIPSYNC_FAST_URL``.
        avatar: its name; the server's default where empty.
        token: what the server asks for; else ``LIPSYNC_FAST_TOKEN``.
        sample_rate: of the sound that is published.
        max_width, quality: of the pictures.

    Raises:
        ValueError: an argument cannot be; the message names it.
    """

    def __init__(
        self,
        *,
        url: str = "",
        avatar: str = "",
        token: str = "",
        sample_rate: int = 24_000,
        max_width: int | None = None,
        quality: int | None = None,
    ) -> None:
        super().__init__()
        self._generator = LipsyncFastGenerator(
            url or os.environ.get("LIPSYNC_FAST_URL", ""),
            avatar=avatar,
            token=token or os.environ.get("LIPSYNC_FAST_TOKEN", ""),
            sample_rate=sample_rate,
            max_width=max_width,
            quality=quality,
            on_face=self._tell,
        )
        self._runner: AvatarRunner | None = None

    @property
    def avatar_identity(self) -> str:
        """The agent's own: it publishes what the server makes."""
        return "" if self._room is None else self._room.local_participant.identity

    @property
    def provider(self) -> str:
        """Who makes the pictures."""
        return "lipsync-fast"

    async def start(self, agent_session: AgentSession, room: rtc.Room) -> None:
        """Attach to an agent's session, whose sound comes with pictures from now on."""
        await super().start(agent_session, room)
        width, height = await self._generator.start() or USUAL_SIZE
        rate = self._generator.sample_rate
        sound = QueueAudioOutput(sample_rate=rate, wait_playback_start=True)
        self._runner = AvatarRunner(
            room,
            audio_recv=sound,
            video_gen=self._generator,
            options=AvatarOptions(width, height, FPS, rate, 1),
        )
        await self._runner.start()
        agent_session.output.replace_audio_tail(sound)

    async def aclose(self) -> None:
        """End it; the agent stays."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.aclose()
        await self._generator.aclose()
        # The base would remove the avatar from the room, which here is the agent itself.
        room, self._room = self._room, None
        if room is not None:
            room.off("connection_state_changed", self._on_connection_state_changed)
        await super().aclose()

    def _tell(self, reason: str | None) -> None:
        if reason is None:
            self.emit("face_found")
        else:
            logger.warning("the agent speaks without a face: %s", reason)
            self.emit("face_lost", reason)
