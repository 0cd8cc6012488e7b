# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for rooms and agents: what would go over the network is carried to the other one."""

from __future__ import annotations

import asyncio
import types
from typing import Any

from livekit import rtc
from speaking_server import PIECE, RATE


def piece(number: int, rate: int = RATE, channels: int = 1) -> rtc.AudioFrame:
    """40 ms at the usual rate; its samples are the number."""
    data = number.to_bytes(2, "little") * (PIECE // 2)
    return rtc.AudioFrame(data, rate, channels, PIECE // 2 // channels)


class Reader:
    def __init__(self, attributes: dict[str, str]) -> None:
        self.info = types.SimpleNamespace(attributes=attributes, stream_id="s")
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        data = await self.queue.get()
        if data is None:
            raise StopAsyncIteration
        return data


class Writer:
    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    async def write(self, data: bytes) -> None:
        self.reader.queue.put_nowait(data)

    async def aclose(self, **_: Any) -> None:
        self.reader.queue.put_nowait(None)


class Publication:
    kind = rtc.TrackKind.KIND_VIDEO

    async def wait_for_subscription(self) -> None:
        return None


class Local:
    def __init__(self, room: Room, identity: str) -> None:
        self.room, self.identity = room, identity
        self._rpc_handlers: dict[str, Any] = {}
        self.tracks: list[Any] = []

    def register_rpc_method(self, name: str, handler: Any = None) -> None:
        self._rpc_handlers[name] = handler

    async def perform_rpc(
        self, *, destination_identity: str, method: str, payload: str, **_: Any
    ) -> Any:
        self.room.log.append((method, payload))
        await asyncio.sleep(0)
        handler = self.room.peer.local_participant._rpc_handlers[method]
        return handler(rtc.RpcInvocationData("1", self.identity, payload, 10.0))

    async def stream_bytes(self, *, topic: str, attributes: dict[str, str], **_: Any) -> Writer:
        reader = Reader(attributes)
        self.room.peer.streams[topic](reader, self.identity)
        return Writer(reader)

    async def publish_track(self, track: Any, options: Any) -> Publication:
        self.tracks.append(track)
        return Publication()


class Room(rtc.EventEmitter[str]):
    """What LiveKit's avatar classes touch of a room."""

    peer: Room

    def __init__(self, identity: str, log: list[tuple[str, str]]) -> None:
        super().__init__()
        self.log = log
        self.streams: dict[str, Any] = {}
        self.local_participant = Local(self, identity)
        self.remote_participants: dict[str, Any] = {}

    def isconnected(self) -> bool:
        return True

    def register_byte_stream_handler(self, topic: str, handler: Any) -> None:
        self.streams[topic] = handler


def pair() -> tuple[Room, Room]:
    log: list[tuple[str, str]] = []
    rooms = Room("agent", log), Room("avatar", log)
    for own, other in (rooms, rooms[::-1]):
        own.peer = other
        own.remote_participants[other.local_participant.identity] = types.SimpleNamespace(
            identity=other.local_participant.identity,
            kind=rtc.ParticipantKind.PARTICIPANT_KIND_AGENT,
            track_publications={},
            disconnect_reason=None,
            state=rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE,
        )
    return rooms


class Output:
    def __init__(self) -> None:
        self.tail: Any = None

    def replace_audio_tail(self, sink: Any) -> None:
        self.tail = sink


class Agent(rtc.EventEmitter[str]):
    """What an avatar's session touches of an agent's."""

    def __init__(self) -> None:
        super().__init__()
        self.output = Output()
