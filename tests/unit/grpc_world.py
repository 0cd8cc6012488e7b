# SPDX-License-Identifier: Apache-2.0
"""The gateway's gRPC in this process, before a front that is played; all on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from lipsync_fast.config import ServeConfig
from lipsync_fast.gateway.fronts import Fronts
from lipsync_fast.gateway.rpc import messages as m
from lipsync_fast.gateway.rpc.server import MOST_MESSAGE, GrpcAdapter
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.ipc.status import GatewayLoad
from lipsync_fast.supervisor.ports import keep_port

SECRET = "the secret"
PATIENCE_S = 60.0
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


async def until(found: Callable[[], Any]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not found():
            await asyncio.sleep(0.01)


class PlayedFront:
    """Answers the old protocol's text messages, in order.

    Attributes:
        asked: the messages that came, decoded; heads: of the connections.
        jpeg: of all pictures.
        refuse: the status with which connections are refused.
        mute: it takes messages, and answers none until this is cleared.
        die_after: it breaks its connections after so many messages.
        say: what it answers instead.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.open = 0
        self.jpeg = b"\xff\xd8 a picture \xff\xd9"
        self.refuse = 0
        self.mute = False
        self.die_after = -1
        self.say: str | bytes | None = None

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.heads.append(dict(request.headers.raw_items()))
        if self.refuse:
            return connection.respond(self.refuse, "no\n")
        return None

    async def handle(self, connection: ServerConnection) -> None:
        self.open += 1
        with suppress(ConnectionClosed):
            await connection.send('{"type":"stats","total_requests":0}')
            async for message in connection:
                self.asked.append(json.loads(message))
                if self.die_after == 0:
                    self.die_after = -1
                    connection.transport.abort()
                    break
                self.die_after -= 1
                while self.mute:
                    await asyncio.sleep(0.01)
                said = self.say
                await connection.send(self.reply(self.asked[-1]) if said is None else said)
        self.open -= 1

    def reply(self, asked: dict[str, Any]) -> str | bytes:
        name, kind = asked.get("model_name", ""), asked.get("type", "")
        if kind == "get_video_frame" and name == "demo":
            word = asked["video_type"].encode()
            head = b"\x02" + asked.get("frame_id", 0).to_bytes(4, "little", signed=True)
            size = len(self.jpeg).to_bytes(4, "little")
            return head + bytes([len(word)]) + word + size + self.jpeg
        return json.dumps(self._words(asked, name, kind))

    def _words(self, asked: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
        if kind == "list_models":
            return {"type": "model_list", "models": ["demo"], "count": 1}
        if kind == "test_binary":
            return {"type": "protocol_ack", "message": "yes"}
        if name not in ("demo", ""):
            return {"success": False, "error": f"Unknown model {name!r}; loaded: demo"}
        if kind == "get_metadata":
            about = {"frame_count": 7, "available_videos": ["full_body"], "bounds": [1, 2, 3, 4]}
            return {"type": "metadata", "success": True, "model_name": name, **about}
        if kind == "get_model_stats":
            stats = {"total_requests": 3, "avg_inference_time_ms": 2.5, "frame_count": 7}
            return {"type": "model_stats", "stats": {**stats, "device": "cpu"}}
        picture = {
            "prediction_data": base64.b64encode(self.jpeg).decode(),
            "bounds": [1.5, 2.0, 3.0, 4.0],
            "metadata": {"picture_index": 0, "prediction_shape": [320, 320, 3]},
        }
        if "batch_frames" in asked:
            frames = [{"frame_id": f["frame_id"], **picture} for f in asked["batch_frames"]]
            return {"success": True, "frames": frames, "average_frame_time_ms": 4.0}
        return {"success": True, **picture, "processing_time_ms": 5}


class World:
    """A front, the gateway's gRPC, and a client's channel."""

    def __init__(self, front: PlayedFront, load: GatewayLoad, fronts: Fronts, port: int) -> None:
        self.front, self.load, self.fronts, self.port = front, load, fronts, port
        self.channel = self.dial()

    def dial(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=UNLIMITED)

    def stub(self, name: str, channel: grpc.aio.Channel | None = None) -> Any:
        method = m.methods()[name]
        channel = channel or self.channel
        make = channel.stream_stream if method.client_streaming else channel.unary_unary
        return make(
            f"/{m.SERVICE}/{name}",
            request_serializer=m.class_of(method.input_type).SerializeToString,
            response_deserializer=m.class_of(method.output_type).FromString,
        )

    async def call(self, name: str, request: Any, **more: Any) -> Any:
        return await self.stub(name)(request, timeout=PATIENCE_S, **more)

    @property
    def calls(self) -> int:
        return self.load.calls["grpc"]


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Its parts, which are all stopped in the end."""
    front, load = PlayedFront(), GatewayLoad()
    kept = keep_port("127.0.0.1", 0)
    async with serve(
        front.handle, "127.0.0.1", 0, process_request=front.admit, compression=None, max_size=None
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        url = f"ws://127.0.0.1:{port}"
        fronts = Fronts(url, SECRET)
        spec = GatewaySpec(
            name="gateway-1", folder="", rings_fd=-1, url=url, secret=SECRET, host="127.0.0.1",
            grpc_ports=[kept.port], config=ServeConfig(), uptime_s=100.0,
        )  # fmt: skip
        adapter = GrpcAdapter(spec, fronts, load)
        await adapter.start()
        made = World(front, load, fronts, kept.port)
        try:
            yield made
        finally:
            await made.channel.close()
            await adapter.drain(0)
            await fronts.close()
            kept.close()


def run(body: Callable[[World], Awaitable[None]]) -> None:
    """Run a test's body in a world of its own."""

    async def main() -> None:
        async with asyncio.timeout(2 * PATIENCE_S), world() as made:
            await body(made)

    asyncio.run(main())


assert MOST_MESSAGE == 50 << 20
