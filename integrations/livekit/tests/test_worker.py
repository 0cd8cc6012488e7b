# SPDX-License-Identifier: Apache-2.0
"""An avatar that joins a room, and an agent that has one brought there; rooms are stand-ins."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jwt
import pytest
from aiohttp import web
from livekit import rtc
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.plugins.lipsync_fast import (
    JoinError,
    RemoteAvatarSession,
    ServiceError,
    join,
    worker,
)
from rooms import Agent, Room, pair, piece
from scripted import scripted
from speaking_server import RATE, speaking


class Place(Room):
    """The worker's room: what ``rtc.Room`` does on the network, noted."""

    def __init__(self, room: Room, behalf: str = "agent") -> None:
        self.__dict__ = room.__dict__
        self.local_participant.attributes = {"lk.publish_on_behalf": behalf}  # type: ignore[attr-defined]
        self.asked: list[tuple[str, str]] = []
        self.closed = False
        self.fails: Exception | None = None
        room.peer.peer = self

    async def connect(self, url: str, token: str) -> None:
        self.asked.append((url, token))
        if self.fails is not None:
            raise self.fails

    async def disconnect(self) -> None:
        self.closed = True


def gone(place: Place, identity: str) -> None:
    place.emit("participant_disconnected", types.SimpleNamespace(identity=identity))


def test_an_avatar_speaks_in_a_room_until_its_agent_leaves() -> None:
    async def run() -> tuple[Any, str, Place, int]:
        agent, other = pair()
        place = Place(other)
        joined = asyncio.Event()
        staying = asyncio.create_task(
            join(
                "wss://rooms.example", "t", on_joined=joined.set, room=lambda: place,  # type: ignore[arg-type, return-value]
                url=server.url, sample_rate=RATE,
            )
        )  # fmt: skip
        async with asyncio.timeout(30):
            await joined.wait()
            out = DataStreamAudioOutput(
                agent, destination_identity="avatar", sample_rate=RATE,  # type: ignore[arg-type]
                wait_playback_start=True,
            )  # fmt: skip
            while len(place.local_participant.tracks) < 2:  # it is seen before it speaks
                await asyncio.sleep(0.01)
            for _ in range(10):
                await out.capture_frame(piece(1))
            out.flush()
            played = await out.wait_for_playout()
            gone(place, "somebody else")
            await asyncio.sleep(0.05)
            assert not staying.done()
            gone(place, "agent")
            why = await staying
        return played, why, place, len(place.local_participant.tracks)

    with scripted(speaking) as server:
        played, why, place, tracks = asyncio.run(run())
        assert server.ended.wait(20)
    assert (played.playback_position, played.interrupted) == (pytest.approx(0.4), False)
    assert (why, tracks, place.closed) == ("the agent has left", 2, True)
    assert place.asked == [("wss://rooms.example", "t")]


def test_a_room_that_closes_ends_it() -> None:
    async def run() -> str:
        place = Place(pair()[1])
        joined = asyncio.Event()
        staying = asyncio.create_task(
            join("wss://x", "t", on_joined=joined.set, room=lambda: place, url=server.url)  # type: ignore[arg-type, return-value]
        )
        async with asyncio.timeout(30):
            await joined.wait()
            await asyncio.sleep(0.1)
            place.emit("disconnected", "SERVER_SHUTDOWN")
            return await staying

    with scripted(speaking) as server:
        assert asyncio.run(run()) == "the room is closed"


def test_a_room_without_its_agent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AGENT_S", 0.2)

    async def run() -> None:
        place = Place(pair()[1], behalf="nobody")
        await join("wss://x", "t", room=lambda: place, url=server.url)  # type: ignore[arg-type, return-value]

    with scripted(speaking) as server, pytest.raises(JoinError, match="no agent came"):
        asyncio.run(run())


def test_a_room_that_cannot_be_joined_says_so() -> None:
    async def run(error: Exception) -> None:
        place = Place(pair()[1])
        place.fails = error
        await join("wss://x", "t", room=lambda: place, url="ws://127.0.0.1:9")  # type: ignore[arg-type, return-value]

    with pytest.raises(JoinError, match=r"cannot be joined .*401"):
        asyncio.run(run(rtc.ConnectError("401 unauthorized")))


def test_a_server_of_livekit_that_is_not_there_is_told() -> None:
    """The native client itself, before a port where nobody listens."""

    async def run() -> None:
        await join("ws://127.0.0.1:9", "t", url="ws://127.0.0.1:9")

    with pytest.raises(JoinError, match=r"cannot be joined|not joined"):
        asyncio.run(run())


# ---------------------------------------------------------------- an agent that has one brought
@contextmanager
def service(status: int, words: str) -> Iterator[Any]:
    """What runs with the server's LiveKit port: answers so, and notes what it was asked."""

    class Service:
        def __init__(self) -> None:
            self.asked: list[tuple[dict[str, Any], str]] = []
            self.url = ""

        async def answer(self, request: web.Request) -> web.Response:
            self.asked.append((await request.json(), request.headers.get("Authorization", "")))
            return web.Response(status=status, text=words)

        async def __aenter__(self) -> Service:
            app = web.Application()
            app.router.add_post("/v1/livekit/sessions", self.answer)
            self.runner = web.AppRunner(app)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
            return self

        async def __aexit__(self, *_: object) -> None:
            await self.runner.cleanup()

    yield Service()


KEYS = {"livekit_url": "wss://rooms.example", "api_key": "key", "api_secret": "s" * 32}


def test_an_agent_asks_for_an_avatar_and_sends_it_its_sound() -> None:
    async def run(made: Any) -> tuple[Any, Agent, Room]:
        room, agent = pair()[0], Agent()
        room.name = "lobby"  # type: ignore[attr-defined]
        async with made:
            avatar = RemoteAvatarSession(service=made.url, token="sesame", avatar="ann", **KEYS)
            assert (avatar.avatar_identity, avatar.provider) == (
                "lipsync-fast-avatar",
                "lipsync-fast",
            )
            await avatar.start(agent, room)  # type: ignore[arg-type]
            tail = agent.output.tail
            await avatar.aclose()
        return tail, agent, room

    with service(201, "{}") as made:
        tail, _, _ = asyncio.run(run(made))
    assert isinstance(tail, DataStreamAudioOutput)
    ((asked, shown),) = made.asked
    assert shown == "Bearer sesame"
    assert (asked["livekit_url"], asked["room_name"], asked["avatar"]) == (
        "wss://rooms.example",
        "lobby",
        "ann",
    )
    claims = jwt.decode(asked["livekit_token"], "s" * 32, algorithms=["HS256"])
    assert (claims["sub"], claims["kind"], claims["iss"]) == ("lipsync-fast-avatar", "agent", "key")
    assert claims["attributes"] == {"lk.publish_on_behalf": "agent"}
    assert claims["video"] == {"room": "lobby", "roomJoin": True} | {
        k: v for k, v in claims["video"].items() if k not in ("room", "roomJoin")
    }


def test_without_an_avatar_the_agent_keeps_its_voice() -> None:
    async def run(made: Any) -> Agent:
        room, agent = pair()[0], Agent()
        room.name = "lobby"  # type: ignore[attr-defined]
        async with made:
            avatar = RemoteAvatarSession(service=made.url, **KEYS)
            with pytest.raises(ServiceError, match=r"503.*as many"):
                await avatar.start(agent, room)  # type: ignore[arg-type]
        away = RemoteAvatarSession(service="http://127.0.0.1:9", **KEYS)
        with pytest.raises(ServiceError, match="cannot be reached"):
            await away.start(agent, room)  # type: ignore[arg-type]
        return agent

    with service(503, "as many avatars are in rooms as may be") as made:
        assert asyncio.run(run(made)).output.tail is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"service": "ws://x"}, "service 'ws://x'"),
        ({"livekit_url": ""}, "livekit_url"),
        ({"api_secret": ""}, "api_secret"),
    ],
)
def test_arguments_are_named(
    changed: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
        monkeypatch.delenv(name, raising=False)

    async def make() -> None:
        RemoteAvatarSession(**({"service": "http://x", **KEYS} | changed))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=words):
        asyncio.run(make())
