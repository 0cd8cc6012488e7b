# SPDX-License-Identifier: Apache-2.0
"""An avatar that joins a room by itself, for an agent that sends it its sound there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from livekit import rtc
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.utils import wait_for_participant
from livekit.agents.voice.avatar import AvatarOptions, AvatarRunner, DataStreamAudioReceiver
from livekit.plugins.lipsync_fast.generator import FPS, USUAL_SIZE, LipsyncFastGenerator

from lipsync_fast_client import LipsyncError

JOIN_S = 10.0
"""How long it may take to join a room."""
AGENT_S = 60.0
"""How long an agent is waited for in it."""
PIECE_MS = 20


class JoinError(LipsyncError):
    """A room cannot be joined; the message says why."""


async def join(
    livekit_url: str,
    livekit_token: str,
    *,
    on_joined: Callable[[], None] = lambda: None,
    room: Callable[[], rtc.Room] = rtc.Room,
    **wanted: Any,
) -> str:
    """Be an agent's avatar in a room, until one of them leaves.

    Args:
        livekit_url: of the LiveKit server, ``wss://…``.
        livekit_token: the avatar's own for the room: of kind agent, its attribute
            lk.publish_on_behalf the agent's identity.
        on_joined: called once it is in the room.
        room: makes one.
        wanted: see ``LipsyncFastGenerator``.

    Returns:
        Why it has left.

    Raises:
        JoinError: the room cannot be joined, or no agent came.
        ValueError: an argument cannot be.
    """
    made = LipsyncFastGenerator(**wanted)
    place = room()
    try:
        async with asyncio.timeout(JOIN_S):
            await place.connect(livekit_url, livekit_token)
    except TimeoutError:
        raise JoinError(f"the room was not joined within {JOIN_S:g} s") from None
    except rtc.ConnectError as error:
        raise JoinError(f"the room cannot be joined ({error})") from None
    try:
        on_joined()
        return await be_avatar(place, made)
    finally:
        with contextlib.suppress(Exception):  # it may be gone already
            await place.disconnect()


async def be_avatar(room: rtc.Room, made: LipsyncFastGenerator) -> str:
    """Show in a room that was joined what an agent says there; until one of them leaves.

    Returns:
        Why it has ended.

    Raises:
        JoinError: no agent came.
    """
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def end(reason: str) -> None:
        if not ended.done():
            ended.set_result(reason)

    def gone(participant: rtc.RemoteParticipant) -> None:
        if participant.identity == agent:
            end("the agent has left")

    def lost(_: object) -> None:
        end("the room is closed")

    agent = room.local_participant.attributes.get(ATTRIBUTE_PUBLISH_ON_BEHALF, "")
    room.on("participant_disconnected", gone)
    room.on("disconnected", lost)
    runner: AvatarRunner | None = None
    try:
        size = await made.start() or USUAL_SIZE
        try:
            async with asyncio.timeout(AGENT_S):
                agent = (await _agent(room, agent)).identity
        except TimeoutError:
            raise JoinError(f"no agent came within {AGENT_S:g} s") from None
        runner = AvatarRunner(
            room,
            audio_recv=DataStreamAudioReceiver(room, sender_identity=agent, frame_size_ms=PIECE_MS),
            video_gen=made,
            options=AvatarOptions(*size, FPS, made.sample_rate, 1),
            _lazy_publish=False,  # it is seen before it speaks
        )
        starting = asyncio.ensure_future(runner.start())
        await asyncio.wait([starting, ended], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await starting
        starting.cancel()
        return await ended
    finally:
        room.off("participant_disconnected", gone)
        room.off("disconnected", lost)
        if runner is not None:
            with contextlib.suppress(Exception):  # of one that had not started yet
                await runner.aclose()
        await made.aclose()


async def _agent(room: rtc.Room, identity: str) -> rtc.RemoteParticipant:
    """The agent, once it is there: the one that is named, or the first one."""
    if identity:
        return await wait_for_participant(room, identity=identity)
    return await wait_for_participant(room, kind=rtc.ParticipantKind.PARTICIPANT_KIND_AGENT)
