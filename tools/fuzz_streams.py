# SPDX-License-Identifier: Apache-2.0
"""A long campaign of bad input against a running server's streams.

    python tools/fuzz_streams.py [--minutes 10] [--seed 1] [--url ws://…]

Starts ``lipsync-fast serve`` on free ports unless ``--url`` names one. Each client opens a
connection and sends a random mixture of messages of lipsync.v1 and of the old protocols, whole,
damaged, cut and repeated, then leaves politely or rudely; some read nothing. After every 50 of them
an ordinary client must be served, and (with a server of its own) no process may have died, nothing
may have been logged as a defect, and the memory of the front must not have run away. Exit status 1
where that does not hold; the seed repeats the clients.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import socket
import struct
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trio
from websockets.exceptions import WebSocketException
from websockets.trio.client import ClientConnection, connect

import lipsync_fast
from lipsync_fast.client import UtteranceEnded
from lipsync_fast.client.local import LocalServer
from lipsync_fast_client.protocol import SUBPROTOCOL

AT_ONCE = 8
ROUND = 50
VISIT_S = 15.0
MOST_GROWTH_MB = 200.0
MESSAGES: list[dict[str, Any]] = [
    {"type": "session.start", "avatar": "demo", "pace": "burst"},
    {"type": "session.start", "audio": {"sample_rate": 48000, "format": "f32le", "channels": 2}},
    {"type": "session.start", "video": {"content": "mouth", "quality": 50}, "echo_audio": True},
    {"type": "session.update", "video": {"max_width": 320}},
    {"type": "session.update", "avatar": "demo"},
    {"type": "session.interrupt"},
    {"type": "utterance.end"},
    {"type": "ping", "id": 1},
    {"type": "get_stats"},
    {"type": "list_models"},
    {"type": "get_metadata", "model_name": "demo"},
    {"type": "get_video_frame", "model_name": "demo", "frame_id": 3, "video_type": "full_body"},
    {"model_name": "demo", "frame_id": 1, "audio_override": "AAAA"},
    {"model_name": "demo", "batch_frames": [{"frame_id": 1}, {"frame_id": 2}]},
    {"type": "switch_to_binary"},
]
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 63,
    1e308,
    "",
    "demo",
    "../x",
    "\0",
    [],
    [[]],
    {},
    {"": {}},
]


def text_message(rng: random.Random) -> str:
    """A message, with fields changed, dropped, added, or as text cut and scrambled."""
    message = dict(rng.choice(MESSAGES))
    for _ in range(rng.choice([0, 0, 1, 3])):
        key = rng.choice([*message, "avatar", "audio", "video", "pace", "frame_id", "model_name"])
        action = rng.random()
        if action < 0.3:
            message.pop(key, None)
        elif isinstance(message.get(key), dict) and action < 0.6:
            message[key] = {**message[key], rng.choice(["quality", "format", "x"]): rng.choice(ODD)}
        else:
            message[key] = rng.choice(ODD)
    text = json.dumps(message)
    if rng.random() < 0.2:
        place = rng.randrange(len(text))
        text = (
            text[:place] + rng.choice(["", "\0", "{", "]" * 9, "[" * 2000, '"', "é"]) + text[place:]
        )
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.1 else text


def binary_message(rng: random.Random) -> bytes:
    """Sound of any size, or a request of the old protocol whose lengths may lie."""
    if rng.random() < 0.6:
        return rng.randbytes(rng.choice([0, 1, 3, 640, 641, 5000, 200_000]))
    name = rng.choice([b"demo", b"", b"default_model", b"\xff", b"x" * 300])
    audio = rng.randbytes(rng.choice([0, 1, 1920, 30_720, 30_721]))
    lengths = [len(name), len(audio)]
    if rng.random() < 0.4:
        lengths[rng.randrange(2)] = rng.choice(
            [0, 1, 1 << 31, (1 << 32) - 1, rng.randrange(1 << 20)]
        )
    frame = rng.choice([0, 1, 99, 1 << 31, (1 << 32) - 1])
    whole = struct.pack("<I", lengths[0]) + name + struct.pack("<II", frame, lengths[1]) + audio
    return whole[: rng.randrange(len(whole) + 1)] if rng.random() < 0.3 else whole


async def one_client(url: str, rng: random.Random) -> None:
    """A connection: some messages, then an end of some kind."""
    offers = [SUBPROTOCOL] if rng.random() < 0.6 else None
    async with connect(
        url, subprotocols=offers, compression=None, close_timeout=1, max_size=1 << 26
    ) as connection:
        async with trio.open_nursery() as nursery:
            if rng.random() < 0.8:
                nursery.start_soon(_read, connection)
            with trio.move_on_after(5):
                if rng.random() < 0.7:
                    await connection.send(json.dumps(MESSAGES[rng.randrange(3)]))
                for _ in range(rng.choice([1, 5, 30])):
                    message = text_message if rng.random() < 0.4 else binary_message
                    await connection.send(message(rng))
                await trio.sleep(rng.choice([0, 0, 0.2, 1.0]))
            nursery.cancel_scope.cancel()
        if rng.random() < 0.6:
            with trio.move_on_after(2):
                await connection.aclose()
        else:
            about = connection.stream.socket  # type: ignore[attr-defined]
            about.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(connection.stream)


async def _read(connection: ClientConnection) -> None:
    while True:
        await connection.recv()


async def raw_bytes(url: str, rng: random.Random) -> None:
    """No WebSocket at all, or one that turns into noise."""
    host, _, port = url.removeprefix("ws://").partition(":")
    stream = await trio.open_tcp_stream(host, int(port.partition("/")[0]))
    async with stream:
        if rng.random() < 0.6:
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
        await stream.send_all(rng.randbytes(rng.choice([1, 100, 70_000])))
        with trio.move_on_after(rng.random()):
            while await stream.receive_some():
                pass


async def visit(url: str, seed: int) -> None:
    """One round's client; what the server does to it is its own business."""
    rng = random.Random(seed)
    try:
        with trio.move_on_after(VISIT_S):
            await (raw_bytes if rng.random() < 0.15 else one_client)(url, rng)
    except* (WebSocketException, OSError, trio.BrokenResourceError):
        pass


async def an_ordinary_client(url: str) -> None:
    """Must be served.

    Raises:
        trio.TooSlowError, SessionError: it is not.
    """
    with trio.fail_after(60):
        async with lipsync_fast.connect(url, pace="burst") as session:
            await session.send(bytes(2 * 3200))
            await session.end_utterance()
            async for event in session:
                if isinstance(event, UtteranceEnded):
                    assert event.frames == 5, event
                    return
    raise AssertionError("the session ended before its utterance")


def front_mb(server: LocalServer) -> tuple[list[int], float]:
    """The children's processes, and the fronts' own memory."""
    status = server.status()
    pids = [c.pid for c in (*status.fronts, *status.engines)]
    lines = [Path(f"/proc/{f.pid}/status").read_text() for f in status.fronts]
    memory = sum(int(t.partition("RssAnon:")[2].split()[0]) / 1024 for t in lines)
    return pids, memory


async def campaign(url: str, server: LocalServer | None, seed: int, seconds: float) -> list[str]:
    """Round after round; what was wrong."""
    await an_ordinary_client(url)
    before = front_mb(server) if server is not None else None
    end, number, wrong = time.monotonic() + seconds, 0, list[str]()
    while time.monotonic() < end and not wrong:
        limit = trio.CapacityLimiter(AT_ONCE)

        async def limited(seed: int, limit: trio.CapacityLimiter = limit) -> None:
            async with limit:
                await visit(url, seed)

        async with trio.open_nursery() as nursery:
            for k in range(ROUND):
                nursery.start_soon(limited, seed * 1_000_000 + number + k)
        number += ROUND
        print(f"{number} clients", flush=True)
        try:
            await an_ordinary_client(url)
        except Exception as error:
            wrong.append(f"an ordinary client was not served: {error!r}")
        if server is not None and before is not None:
            pids, memory = front_mb(server)
            if not set(before[0]) <= set(pids):
                wrong.append(f"a process has died: {before[0]} before, {pids} now")
            if memory > before[1] + MOST_GROWTH_MB:
                wrong.append(f"the front has grown from {before[1]:.0f} to {memory:.0f} MB")
            wrong += [line for line in server.log().splitlines() if "Traceback" in line][:1]
        if wrong:
            wrong.append(f"in the rounds {number - ROUND} to {number} of seed {seed}")
    grown = "" if server is None else f", front {before[1]:.0f} to {front_mb(server)[1]:.0f} MB"  # type: ignore[index]
    print(f"{number} clients{grown}")
    return wrong


def main() -> int:
    """Run the campaign; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="of a server that runs already")
    args = parser.parse_args()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # our own clients' bad manners
    with ExitStack() as stack:
        server = None
        if args.url is None:
            config = {"limits": {"sessions_per_address": 1000}, "log": {"level": "warning"}}
            server = stack.enter_context(LocalServer(config))
        url = args.url or (server.url if server is not None else "")
        wrong = trio.run(campaign, url, server, args.seed, args.minutes * 60)
        if wrong and server is not None:
            wrong.append(server.log()[-5000:])
    for words in wrong:
        print(words, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
