# SPDX-License-Identifier: Apache-2.0
"""The gateway's port for LiveKit's agents: who may call avatars, where, and what they are told.

Joining itself is the plug-in's (integrations/livekit/tests); here it is played.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the extra webrtc is not installed")

from lipsync_fast.config import Listen, LiveKit, ServeConfig  # noqa: E402
from lipsync_fast.config_load import load  # noqa: E402
from lipsync_fast.errors import ConfigError, LipsyncError  # noqa: E402
from lipsync_fast.gateway.fronts import Fronts  # noqa: E402
from lipsync_fast.gateway.livekit import rooms  # noqa: E402
from lipsync_fast.gateway.livekit.server import ROUTE, LiveKitAdapter  # noqa: E402
from lipsync_fast.ipc.children import GatewaySpec  # noqa: E402
from lipsync_fast.ipc.status import GatewayLoad  # noqa: E402
from lipsync_fast.supervisor.ports import keep_port  # noqa: E402

ADMIN = {"Authorization": "Bearer sesame"}


def token(seconds: float = 600.0) -> str:
    claims = json.dumps({"exp": time.time() + seconds}).encode()
    return f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


def asked(**changed: Any) -> dict[str, Any]:
    return {
        "livekit_url": "wss://rooms.example",
        "livekit_token": token(),
        "room_name": "lobby",
        "avatar": "ann",
    } | changed


class Rooms:
    """Plays the plug-in's ``join``: what it was told, and how each stay ends."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.fails: Exception | None = None
        self.silent = False

    async def join(self, livekit_url: str, livekit_token: str, **more: Any) -> str:
        self.told.append({"livekit_url": livekit_url, "livekit_token": livekit_token} | more)
        if self.fails is not None:
            raise self.fails
        if self.silent:
            await asyncio.sleep(3600)
        more["on_joined"]()
        await self.left.wait()
        return "the agent has left"


Talk = Callable[[Any, Rooms, GatewayLoad, LiveKitAdapter], Awaitable[None]]


def with_port(talk: Talk, **changed: Any) -> None:
    config = ServeConfig(
        listen=Listen(token="word", admin_token="sesame"),
        livekit=LiveKit(**({"hosts": ("rooms.example", "127.0.0.1:7880")} | changed)),
    )

    async def main() -> None:
        kept = keep_port("127.0.0.1", 0, "livekit")
        load, played = GatewayLoad(), Rooms()
        spec = GatewaySpec(
            name="gateway-1", folder="", rings_fd=-1, url="ws://127.0.0.1:9", secret="s",
            host="127.0.0.1", config=config, livekit_ports=[kept.port],
        )  # fmt: skip
        fronts = Fronts(spec.url, spec.secret)
        adapter = LiveKitAdapter(spec, fronts, load, join=played.join)
        await adapter.start()
        url = f"http://127.0.0.1:{kept.port}"
        try:
            async with asyncio.timeout(60), aiohttp.ClientSession(url, headers=ADMIN) as http:
                await talk(http, played, load, adapter)
        finally:
            await adapter.drain(0)
            await fronts.close()
            kept.close()

    asyncio.run(main())


async def answer(response: Any) -> tuple[int, str]:
    async with response as given:
        return given.status, (await given.text()).strip()


def test_an_avatar_joins_and_leaves_with_its_agent() -> None:
    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        async with http.post(ROUTE, json=asked()) as given:
            assert given.status == 201
            made = await given.json()
            assert given.headers["Location"] == f"{ROUTE}/{made['session']}"
        assert (made["livekit"], made["room_name"]) == ("rooms.example:443", "lobby")
        assert (made["avatar"], made["state"]) == ("ann", "joined")
        (told,) = played.told
        assert (told["livekit_url"], told["avatar"]) == ("wss://rooms.example", "ann")
        way = told["dial"](url="ws://else", avatar="ann")._dialer
        assert way.url == "ws://127.0.0.1:9", "to the fronts, whatever the plug-in would do"
        headers = way._options["additional_headers"]
        assert headers == {"X-Lipsync-Fast-Gateway": "s", "Authorization": "Bearer word"}
        async with http.get(ROUTE) as given:
            assert [s["session"] for s in (await given.json())["sessions"]] == [made["session"]]
        assert load.calls["livekit"] == 1
        played.left.set()
        while load.calls["livekit"]:
            await asyncio.sleep(0.01)
        async with http.get(ROUTE) as given:
            assert await given.json() == {"sessions": []}
        assert (load.begun, load.failed) == ({"livekit/session": 1}, {"livekit": 0})

    with_port(talk)


def test_a_form_as_other_services_take_it() -> None:
    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        form = aiohttp.FormData(default_to_multipart=True)
        for name, value in asked(model="x").items():
            form.add_field("avatar_id" if name == "avatar" else name, value)
        assert (await answer(http.post(ROUTE, data=form)))[0] == 201
        assert played.told[0]["avatar"] == "ann"

    with_port(talk)


def test_an_avatar_is_sent_away() -> None:
    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        async with http.post(ROUTE, json=asked()) as given:
            place = given.headers["Location"]
        assert (await answer(http.delete(place)))[0] == 204
        assert (await answer(http.delete(place)))[0] == 404
        assert load.calls["livekit"] == 0

    with_port(talk)


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"livekit_url": "wss://elsewhere.example"}, 403, "livekit.hosts"),
        ({"livekit_url": "wss://rooms.example.evil.example"}, 403, "livekit.hosts"),
        ({"livekit_url": "ws://127.0.0.1:7881"}, 403, "livekit.hosts"),
        ({"livekit_url": "wss://rooms.example@127.0.0.1:22"}, 400, "expected wss://"),
        ({"livekit_url": "file:///etc/passwd"}, 400, "expected wss://"),
        ({"livekit_url": "wss://[::1"}, 400, "expected wss://"),
        ({"livekit_url": ""}, 400, "expected wss://"),
        ({"livekit_url": 7}, 400, "livekit_url"),
        ({"livekit_token": "no token"}, 400, "JWT"),
        ({"livekit_token": "a.b.c"}, 400, "JWT"),
        ({"livekit_token": token(-1)}, 400, "run out"),
        ({"livekit_token": "e30.e30.e30"}, 400, "run out"),
    ],
)
def test_nobody_is_called_who_may_not_be(changed: dict[str, Any], status: int, words: str) -> None:
    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        got, said = await answer(http.post(ROUTE, json=asked(**changed)))
        assert got == status
        assert words in said
        assert "\n" not in said
        assert played.told == []
        assert load.refused["livekit"] == 1

    with_port(talk)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"{}", b"x" * 70_000])
def test_what_is_no_request_is_said_so(body: bytes) -> None:
    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        got, said = await answer(http.post(ROUTE, data=body))
        assert got == (413 if len(body) > 65_536 else 400)
        assert said
        assert played.told == []

    with_port(talk)


def test_who_does_not_show_the_admin_token_is_refused() -> None:
    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        for headers in ({"Authorization": "Bearer word"}, {"Authorization": "Basic sesame"}):
            got, said = await answer(http.post(ROUTE, json=asked(), headers=headers))
            assert got == 401
            assert "listen.admin_token" in said
        page = {"Origin": "https://rooms.example"}
        assert (await answer(http.post(ROUTE, json=asked(), headers=page)))[0] == 403
        assert (await answer(http.get(ROUTE, headers={"Authorization": ""})))[0] == 401
        assert played.told == []

    with_port(talk)


def test_a_room_that_cannot_be_joined_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "JOIN_S", 0.3)

    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        played.fails = LipsyncError("the room cannot be joined (401)")
        assert await answer(http.post(ROUTE, json=asked())) == (502, str(played.fails))
        assert load.failed["livekit"] == 1
        played.fails, played.silent = None, True
        got, said = await answer(http.post(ROUTE, json=asked()))
        assert (got, "not joined" in said) == (502, True)
        while load.calls["livekit"]:
            await asyncio.sleep(0.01)

    with_port(talk)


def test_as_many_as_may_be_and_none_when_it_leaves() -> None:
    async def talk(http: Any, played: Rooms, load: GatewayLoad, adapter: LiveKitAdapter) -> None:
        assert (await answer(http.post(ROUTE, json=asked())))[0] == 201
        assert (await answer(http.post(ROUTE, json=asked())))[0] == 503
        draining = asyncio.create_task(adapter._rooms.drain(60))
        await asyncio.sleep(0)
        assert (await answer(http.post(ROUTE, json=asked())))[0] == 503
        played.left.set()
        await draining
        assert load.calls["livekit"] == 0

    with_port(talk, most=1)


def test_a_port_needs_an_admin_token_and_hosts_are_such() -> None:
    with pytest.raises(ConfigError, match=r"listen\.admin_token"):
        load(None, {"LIPSYNC_FAST_LISTEN_LIVEKIT_PORTS": "8012"})
    shown = {"LIPSYNC_FAST_LIVEKIT_HOSTS": "Rooms.Example.,10.0.0.1:7880,[::1]:7880"}
    hosts = load(None, shown).config.livekit.hosts
    assert hosts == ("rooms.example", "10.0.0.1:7880", "[::1]:7880")
    for wrong in ("wss://rooms.example", "a b", "host:", "host:0"):
        with pytest.raises(ConfigError, match=r"livekit\.hosts"):
            load(None, {"LIPSYNC_FAST_LIVEKIT_HOSTS": wrong})
