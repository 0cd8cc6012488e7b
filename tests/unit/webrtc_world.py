# SPDX-License-Identifier: Apache-2.0
"""The gateway's WebRTC in this process, before a front that is played, with aiortc as browsers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import aioice.ice
import msgspec
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from lipsync_fast.config import ServeConfig
from lipsync_fast.gateway.fronts import Fronts
from lipsync_fast.gateway.webrtc.peers import Use
from lipsync_fast.gateway.webrtc.server import WebRtcAdapter
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.ipc.status import GatewayLoad
from lipsync_fast.media.h264 import H264Encoder
from lipsync_fast.supervisor.ports import keep_port
from lipsync_fast_client import protocol as p

SECRET = "the secret"
PATIENCE_S = 60.0
SIZE = 128, 96
SLOT_US = 40_000
SDP = {"Content_Type": "application/sdp"}
LOUD = 2_000


async def until(found: Callable[[], Any]) -> Any:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not (got := found()):
            await asyncio.sleep(0.01)
    return got


class PlayedFront:
    """Speaks lipsync.v1: H.264 at rest, and what it hears back as an echo, slot by slot.

    Attributes:
        heads: of the connections; refuse: the status with which they are refused.
        starts: the sessions' first messages; said: others, by their types.
        heard: the sound that has come.
        open: connections now.
        code: of the error with which sessions are refused.
        text: it speaks texts, as a byte of sound for each.
        deaf: it does not take what is said, for now.
    """

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.refuse = 0
        self.code = ""
        self.text = False
        self.deaf = False
        self.starts: list[p.SessionStart] = []
        self.said: list[str] = []
        self.heard = bytearray()
        self.open = 0
        self._connections: set[ServerConnection] = set()

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.heads.append(dict(request.headers.raw_items()))
        return connection.respond(self.refuse, "not now\n") if self.refuse else None

    def die(self) -> None:
        """Break all connections."""
        for connection in self._connections:
            connection.transport.abort()

    async def handle(self, connection: ServerConnection) -> None:
        self.open += 1
        self._connections.add(connection)
        with suppress(ConnectionClosed):
            await Shown(self, connection).run()
        self._connections.discard(connection)
        self.open -= 1


class Shown:
    """A session."""

    def __init__(self, front: PlayedFront, connection: ServerConnection) -> None:
        self._front, self._connection = front, connection
        self._pcm = bytearray()
        self._utterance, self._ended = 0, False
        self._speaking = self._key = False
        self._pictures = True

    async def run(self) -> None:
        start = p.decode_client(str(await self._connection.recv()))
        assert isinstance(start, p.SessionStart)
        self._front.starts.append(start)
        self._pictures = start.pictures
        if self._front.code:
            await self._say(p.ErrorMessage(code=self._front.code, message="no such", fatal=True))  # type: ignore[arg-type]
            return
        await self._say(
            p.SessionStarted(
                session="s1", avatar=start.avatar or "demo", width=SIZE[0], height=SIZE[1], fps=25,
                bounds=Rect(0, 0, 8, 8), latency_ms=500.0, codec="h264",
                text=self._front.text or msgspec.UNSET,
            )
        )  # fmt: skip
        show = asyncio.create_task(self._show(start.audio.sample_rate * 2 * SLOT_US // 1_000_000))
        try:
            async for message in self._connection:
                await self._hear(message)
        finally:
            show.cancel()

    async def _hear(self, message: str | bytes) -> None:
        while self._front.deaf:
            await asyncio.sleep(0.01)
        if isinstance(message, bytes):
            self._front.heard += message
            self._pcm += message
            self._ended = False
            return
        decoded = p.decode_client(message)
        self._front.said.append(type(decoded).__name__)
        if isinstance(decoded, p.SessionStop):
            await self._connection.close()
        elif isinstance(decoded, p.VideoKeyframe):
            self._key = True
        elif isinstance(decoded, p.SessionUpdate) and decoded.pictures is not None:
            self._pictures, self._key = decoded.pictures, True
        elif isinstance(decoded, p.UtteranceSay):
            text = str(decoded.text).encode()
            self._front.heard += text
            self._pcm += np.frombuffer(text, np.uint8).astype("<i2").repeat(4_000).tobytes()
            self._ended = True
        elif isinstance(decoded, p.UtteranceEnd):
            self._ended = True
        elif isinstance(decoded, p.SessionInterrupt):
            self._pcm.clear()
            self._speaking = False
            await self._say(p.SessionInterrupted(last_frame=0))

    async def _show(self, step: int) -> None:
        loop, sequence, encoder = asyncio.get_running_loop(), 0, H264Encoder(SIZE, 30, None, b"")
        began = loop.time()
        for slot in range(1_000_000):
            await asyncio.sleep(max(0.0, began + slot * SLOT_US / 1e6 - loop.time()))
            pts = slot * SLOT_US
            if self._pcm and (len(self._pcm) >= step or self._ended):
                if not self._speaking:
                    self._speaking = True
                    self._utterance += 1
                    await self._say(p.UtteranceStarted(utterance=self._utterance))
                piece = bytes(self._pcm[:step]).ljust(step, b"\0")
                del self._pcm[:step]
                await self._media(p.MediaType.AUDIO, piece, pts, sequence)
                sequence += 1
            elif self._speaking and self._ended:
                self._speaking = False
                await self._say(p.UtteranceEnded(utterance=self._utterance, frames=1, dropped=0))
            if not self._pictures:
                continue
            if self._key:
                encoder = H264Encoder(SIZE, 30, None, b"")  # begins with a key frame
            planes = np.full((SIZE[1] * 3 // 2, SIZE[0]), 60 + slot % 100, np.uint8)
            key = self._key
            self._key = False
            unit, is_key = encoder.encode(planes)[:2]
            flags = p.MediaFlag.KEY if key or is_key else p.MediaFlag.NONE
            await self._media(p.MediaType.H264, bytes(unit), pts, sequence, flags)
            sequence += 1

    async def _media(
        self, kind: Any, data: bytes, pts: int, sequence: int, flags: Any = p.MediaFlag.NONE
    ) -> None:
        header = p.MediaHeader(
            type=kind, flags=flags, sequence=sequence, pts_us=pts, size=len(data),
            utterance=self._utterance if self._speaking else 0, box=Rect(0, 0, *SIZE),
        )  # fmt: skip
        await self._connection.send(p.pack_media(header) + data)

    async def _say(self, message: Any) -> None:
        await self._connection.send(p.encode(message))


class Browser:
    """A peer connection that wants picture and sound.

    Attributes:
        pictures: pts of those that came; sound: samples; loud: seconds at which it was.
    """

    def __init__(self, microphone: Any = None, sound: bool = True) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pictures: list[float] = []
        self.sound: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.pc.on("track", self._came)
        self.pc.addTransceiver("video", direction="recvonly")
        if microphone is not None:
            self.pc.addTrack(microphone)
        elif sound:
            self.pc.addTransceiver("audio", direction="recvonly")

    def _came(self, track: Any) -> None:
        self._tasks.append(asyncio.create_task(self._take(track)))

    async def _take(self, track: Any) -> None:
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if track.kind == "video":
                    self.pictures.append(float(frame.time))
                else:
                    self.sound.append(frame.to_ndarray().reshape(-1)[::2])

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        made: str = self.pc.localDescription.sdp
        return made

    async def answered(self, sdp: str) -> None:
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    def is_loud(self, last: int = 5) -> bool:
        """Whether the last packets are."""
        return len(self.sound) >= last and bool(
            np.abs(np.concatenate(self.sound[-last:])).max() > LOUD
        )

    def vanish(self) -> None:
        """Say nothing more, as if the cable were cut."""
        for transceiver in self.pc.getTransceivers():
            for protocol in transceiver.receiver.transport.transport._connection._protocols:
                protocol.transport.abort()

    async def close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self.pc.close()
        for task in self._tasks:
            task.cancel()


class World:
    """A front, the gateway's WebRTC, and programs of clients."""

    def __init__(
        self, front: PlayedFront, load: GatewayLoad, port: int, adapter: WebRtcAdapter
    ) -> None:
        self.front, self.load, self.adapter = front, load, adapter
        self.url = f"http://127.0.0.1:{port}"
        self.http = aiohttp.ClientSession(self.url)
        self._browsers: list[Browser] = []

    def browser(self, microphone: Any = None, sound: bool = True) -> Browser:
        made = Browser(microphone, sound)
        self._browsers.append(made)
        return made

    async def ask(
        self, method: str, path: str, data: Any = None, **headers: str
    ) -> tuple[int, str, Any]:
        """Status, text and headers of an answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(data, bytes):
            data = io.BytesIO(data)
        async with self.http.request(method, path, data=data, headers=named) as answer:
            return answer.status, await answer.text(), answer.headers

    async def watch(
        self, browser: Browser | None = None, path: str = "/whep", **headers: str
    ) -> Any:
        """A browser that plays; gives it and its place."""
        browser = browser or self.browser()
        status, answer, heads = await self.ask(
            "POST", path, await browser.offer(), **SDP, **headers
        )
        assert status == 201, answer
        await browser.answered(answer)
        await until(lambda: browser.pictures)
        return browser, heads["Location"]

    async def told(self, path: str, data: Any = None, **headers: str) -> Any:
        """What a route of LiveTalking's answers."""
        form = isinstance(data, aiohttp.FormData)
        body = data if form else msgspec.json.encode(data)
        status, text, heads = await self.ask("POST", path, body, **headers)
        assert status == 200
        assert heads["Content-Type"].startswith("application/json")
        return msgspec.json.decode(text)

    @property
    def peers(self) -> int:
        return self.load.calls["webrtc"]


@asynccontextmanager
async def world(config: ServeConfig) -> AsyncIterator[World]:
    """Its parts, which are all stopped in the end."""
    front, load = PlayedFront(), GatewayLoad()
    kept = keep_port("127.0.0.1", 0, "webrtc")
    async with serve(
        front.handle, "127.0.0.1", 0, process_request=front.admit, compression=None, max_size=None
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        url = f"ws://127.0.0.1:{port}"
        fronts = Fronts(url, SECRET)
        spec = GatewaySpec(
            name="gateway-1", folder="", rings_fd=-1, url=url, secret=SECRET, host="127.0.0.1",
            webrtc_ports=[kept.port], config=config, uptime_s=100.0,
        )  # fmt: skip
        adapter = WebRtcAdapter(spec, fronts, load)
        adapter._peers._use = Use(used=lambda: 0.0)  # browsers and front are in this process, too
        await adapter.start()
        made = World(front, load, kept.port, adapter)
        try:
            yield made
        finally:
            for browser in made._browsers:
                await browser.close()
            await made.http.close()
            await adapter.drain(0)
            await fronts.close()
            kept.close()


def run(body: Callable[[World], Awaitable[None]], config: ServeConfig | None = None) -> None:
    """Run a test's body in a world of its own, on loopback alone."""

    async def main() -> None:
        async with asyncio.timeout(2 * PATIENCE_S), world(config or ServeConfig()) as made:
            await body(made)

    before = aioice.ice.get_host_addresses
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    try:
        asyncio.run(main())
    finally:
        aioice.ice.get_host_addresses = before
