# SPDX-License-Identifier: Apache-2.0
"""What sending a frame costs: a bare stream, websockets' connection, and the front's own way.

    python bench/micro/send.py [--frames 2000] [--rounds 5] [--size 60000] [--out FILE]

A child process reads everything from a TCP connection on loopback. Counted is this process's
processor time for each frame; frames go out in tens, so that the reader keeps up. The bare stream
is the floor: the kernel's copy of the bytes.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable

import trio
from websockets.trio.server import serve

from lipsync_fast.benchmark import program
from lipsync_fast.duplex import DuplexServerConnection
from lipsync_fast.frontend.listen.stream import StreamSocket
from lipsync_fast.frontend.session.outbox import Item, Outbox

Send = Callable[[bytes], Awaitable[object]]


def reader(port: int, websocket: bool) -> int:
    """A child process that reads until the end."""
    pid = os.fork()
    if pid:
        return pid
    with socket.create_connection(("127.0.0.1", port)) as end:
        if websocket:
            end.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
        while end.recv(1 << 20):
            pass
    os._exit(0)


async def spent(send: Send, data: bytes, frames: int) -> float:
    """Microseconds of processor time for each frame."""
    for _ in range(50):
        await send(data)
    begun = time.process_time()
    for k in range(frames):
        await send(data)
        if k % 10 == 9:
            await trio.sleep(0.002)
    return (time.process_time() - begun) / frames * 1e6


async def bare(data: bytes, frames: int) -> float:
    """trio's stream alone."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    pid = reader(listener.socket.getsockname()[1], websocket=False)
    stream = await listener.accept()
    found = await spent(stream.send_all, data, frames)
    await stream.aclose()
    await listener.aclose()
    os.waitpid(pid, 0)
    return found


async def websocket(data: bytes, frames: int, ours: bool) -> float:
    """A WebSocket server's connection; ``ours`` through the front's socket and outbox."""
    found: list[float] = []
    done = trio.Event()

    async def handle(connection: DuplexServerConnection) -> None:
        if not ours:
            found.append(await spent(connection.send, data, frames))
        else:
            async with trio.open_nursery() as nursery:
                box = Outbox(StreamSocket(connection, 0), 1000, lambda count: None)
                nursery.start_soon(box.run)

                async def put(data: bytes) -> None:
                    box.post(Item(data, 0, True))
                    await trio.lowlevel.checkpoint()

                found.append(await spent(put, data, frames))
                nursery.cancel_scope.cancel()
        done.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: serve(
                handle,
                port=0,
                host="127.0.0.1",
                compression=None,
                create_connection=DuplexServerConnection,
                task_status=task_status,
            )
        )
        pid = reader(server.listeners[0].socket.getsockname()[1], websocket=True)
        await done.wait()
        nursery.cancel_scope.cancel()
    os.waitpid(pid, 0)
    return found[0]


def main() -> None:
    """Measure and print."""
    args = program.options(__doc__, frames=2000, rounds=5, size=60_000, out=None)
    data = os.urandom(args.size)
    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "bare stream": lambda: bare(data, args.frames),
        "websockets": lambda: websocket(data, args.frames, ours=False),
        "the front's outbox": lambda: websocket(data, args.frames, ours=True),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            found[name].append(trio.run(way))
    for name, values in found.items():
        ratio = statistics.median(a / b for a, b in zip(values, found["bare stream"], strict=True))
        print(f"{name:20s} {statistics.median(values):7.1f} us a frame, {ratio:.2f} x the floor")
    rounded = {name: [round(v, 2) for v in values] for name, values in found.items()}
    program.keep(args.out, size=args.size, us_per_frame=rounded)


if __name__ == "__main__":
    main()
