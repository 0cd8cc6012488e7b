# SPDX-License-Identifier: Apache-2.0
"""WebRTC of a real server, with aiortc as browsers, on loopback: pictures, words, and deaths.

One server for all tests, in their order: processes of it die.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talking import ALONE, SLOW_MACHINE

aiortc = pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
aiohttp = pytest.importorskip("aiohttp", reason="the extra webrtc is not installed")

import lipsync_fast  # noqa: E402
from lipsync_fast.client.local import LocalServer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.clock]
PATIENCE_S = 120.0
TOKEN = "open sesame"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}
LOUD = 600
SPEECH = Path(lipsync_fast.__file__).parent / "data" / "demo" / "speech.wav"


@pytest.fixture(scope="module")
def server(tiny_avatar: Path) -> Iterator[LocalServer]:
    config = {
        "listen": {"webrtc_ports": [0], "token": TOKEN},
        "avatars": {"folders": [str(tiny_avatar.parent)], "default": "tiny"},
        "engines": ALONE,
        "live": SLOW_MACHINE,
    }
    with LocalServer(config, start_s=180) as server:
        until(lambda: server.status().gateways[0].state == "ready")
        yield server


def until(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (got := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return got


async def when(found: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while not (got := found()):
            await asyncio.sleep(0.02)
    return got


class Viewer:
    """A browser's peer connection, and requests beside it."""

    def __init__(self, server: LocalServer) -> None:
        port = server.status().gateways[0].ports["webrtc"][0]
        self.http = aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=SHOWN)
        self.pc = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.pictures: list[tuple[float, Any]] = []
        self.sound: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.place = ""
        self.pc.on("track", lambda t: self._tasks.append(asyncio.ensure_future(self._take(t))))
        for kind in ("audio", "video"):
            self.pc.addTransceiver(kind, direction="recvonly")

    async def _take(self, track: Any) -> None:
        try:
            while True:
                frame = await track.recv()
                if track.kind == "video":
                    self.pictures.append((time.monotonic(), frame))
                else:
                    self.sound.append(frame.to_ndarray())
        except aiortc.mediastreams.MediaStreamError:
            pass

    def is_loud(self, last: int = 10) -> bool:
        heard = self.sound[-last:]
        return bool(heard) and bool(np.abs(np.concatenate(heard, axis=1)).max() > LOUD)

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        made: str = self.pc.localDescription.sdp
        return made

    async def watch(self) -> None:
        headers = {"Content-Type": "application/sdp"}
        async with self.http.post("/whep", data=await self.offer(), headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            self.place = answer.headers["Location"]
            sdp = await answer.text()
        await self.pc.setRemoteDescription(aiortc.RTCSessionDescription(sdp, "answer"))

    async def say(self) -> None:
        data = SPEECH.open("rb")
        async with self.http.post(f"{self.place}/audio", data=data) as answer:
            assert answer.status == 202

    async def close(self) -> None:
        await self.http.close()
        await self.pc.close()
        for task in self._tasks:
            task.cancel()


def viewing(server: LocalServer, body: Callable[[Viewer], Awaitable[None]]) -> None:
    import aioice.ice

    async def main() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            viewer = Viewer(server)
            try:
                await body(viewer)
            finally:
                await viewer.close()

    before = aioice.ice.get_host_addresses
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    try:
        asyncio.run(main())
    finally:
        aioice.ice.get_host_addresses = before


# ---------------------------------------------------------------- what works
def test_a_picture_comes_at_once_and_then_25_a_second(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        began = time.monotonic()
        await viewer.watch()
        await when(lambda: viewer.pictures)
        assert viewer.pictures[0][0] - began < 3.0
        await viewer.say()
        await when(viewer.is_loud)
        first = len(viewer.pictures)
        await asyncio.sleep(3.0)
        shown = viewer.pictures[first:]
        media = float(shown[-1][1].time - shown[0][1].time)
        assert (len(shown) - 1) / media == pytest.approx(25.0, abs=2.0)
        assert len(viewer.sound) * 0.02 > 3.0
        frame = shown[-1][1]
        assert (frame.width, frame.height) == (160, 192)

    viewing(server, body)


def test_an_interruption_silences(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        await viewer.watch()
        await when(lambda: viewer.pictures)
        await viewer.say()
        await when(viewer.is_loud)
        async with viewer.http.delete(f"{viewer.place}/audio") as answer:
            assert answer.status == 204
        await when(lambda: not viewer.is_loud())
        count = len(viewer.sound)
        await when(lambda: len(viewer.sound) > count + 50)
        assert not viewer.is_loud(50)
        async with viewer.http.delete(viewer.place) as answer:
            assert answer.status == 200
        await when(lambda: server.status().gateways[0].load.calls["webrtc"] == 0)
        await when(lambda: server.status().fronts[0].load.sessions == 0)

    viewing(server, body)


def test_the_token_is_asked_for(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        offer = await viewer.offer()
        for shown in ("", "Bearer wrong"):
            headers = {"Content-Type": "application/sdp", "Authorization": shown}
            async with viewer.http.post("/whep", data=offer, headers=headers) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"

    viewing(server, body)


def test_an_avatar_that_is_not_there(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        asked = {"sdp": await viewer.offer(), "type": "offer", "avatar": "nobody"}
        async with viewer.http.post("/offer", json=asked) as answer:
            assert answer.status == 200
            told = await answer.json()
        assert told["code"] == -1
        assert "nobody" in told["msg"]

    viewing(server, body)


def test_what_was_done_is_told(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        await viewer.watch()
        await when(lambda: len(viewer.pictures) > 50)
        headers = {"Content-Type": "application/sdp"}
        async with viewer.http.post(
            "/whep", data="", headers=headers | {"Authorization": "Bearer wrong"}
        ) as answer:
            assert answer.status == 401
        async with viewer.http.post("/offer", json={"sdp": ""}) as answer:
            assert (await answer.json())["code"] == -1

        def told() -> bool:
            load = server.status().gateways[0].load
            return (
                load.begun.get("webrtc/whep", 0) >= 1
                and load.begun.get("webrtc/offer", 0) >= 1
                and load.pictures.get("webrtc", 0) > 50
                and load.bytes.get("webrtc", 0) > 10_000
                and load.refused.get("webrtc", 0) >= 2
            )

        await when(told)

    viewing(server, body)
    asked = urllib.request.Request(f"{server.http_url}/metrics", headers=SHOWN)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        text = answer.read().decode()
    assert 'call="whep"' in text
    assert 'protocol="webrtc"' in text


# ---------------------------------------------------------------- faults
def test_a_front_that_is_killed_is_waited_for(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        await viewer.watch()
        await when(lambda: viewer.pictures)
        os.kill(server.status().fronts[0].pid, signal.SIGKILL)
        await when(lambda: server.status().fronts[0].restarts == 1)
        await when(lambda: server.status().fronts[0].load.sessions == 1)
        count = len(viewer.pictures)
        await when(lambda: len(viewer.pictures) > count + 20)
        assert viewer.pc.connectionState == "connected"

    viewing(server, body)


def test_after_a_gateway_was_killed_a_new_offer_works(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        await viewer.watch()
        await when(lambda: viewer.pictures)
        (gateway,) = server.status().gateways
        os.kill(gateway.pid, signal.SIGKILL)

        def succeeded() -> Any:
            (now,) = server.status().gateways
            return now if now.state == "ready" and now.pid != gateway.pid else None

        heir = await when(succeeded)
        assert (heir.restarts, heir.ports) == (1, gateway.ports)
        await when(lambda: server.status().fronts[0].load.sessions == 0)
        other = Viewer(server)
        try:
            await other.watch()
            await when(lambda: other.pictures)
        finally:
            await other.close()

    viewing(server, body)


def test_a_server_that_drains_ends_its_sessions(server: LocalServer) -> None:
    async def body(viewer: Viewer) -> None:
        await viewer.watch()
        await when(lambda: viewer.pictures)
        server.terminate()
        await when(lambda: viewer.pc.connectionState == "closed")

    viewing(server, body)
    assert server.wait(PATIENCE_S) == 0
    log = server.log_path.read_text()
    assert "Traceback" not in log
    assert "a client's WebRTC has failed" not in log
