# SPDX-License-Identifier: Apache-2.0
"""What TLS costs a front: each frame, each handshake, each connection's memory.

    python bench/micro/tls.py [--frames 2000] [--handshakes 300] [--rounds 5] [--size 54000]
        [--out FILE]

A child process reads everything from a WebSocket on loopback, which the front's own outbox and
socket fill. Counted is this process's processor time for each frame, without TLS and with it;
frames go out in tens, so that the reader keeps up. A handshake is a client's of TLS 1.3 that leaves
at once. Memory is what 200 connections add that have shaken hands and rest. Certificates are made
by the program openssl.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import cast

import trio
from websockets.trio.server import serve

from lipsync_fast.benchmark import program
from lipsync_fast.certificates import Certificate
from lipsync_fast.duplex import DuplexServerConnection
from lipsync_fast.frontend.access.secure import Security
from lipsync_fast.frontend.listen.stream import StreamSocket
from lipsync_fast.frontend.session.outbox import Item, Outbox

KEYS = {
    "ECDSA, P-256": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "RSA, 2048 bits": ("rsa:2048",),
}
RESTING = 200
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def certificate(kind: str) -> Certificate:
    """One of its own, with a key of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("key", "chain")]
        made = ["-newkey", *KEYS[kind], "-keyout", files[0], "-out", files[1]]
        subprocess.run(
            ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=localhost", *made],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        key, chain = (Path(file).read_bytes() for file in files)
    return Certificate(chain=chain, key=key)


def dialed(port: int, secure: bool) -> socket.socket:
    """A client's connection."""
    plain = socket.create_connection(("127.0.0.1", port))
    if not secure:
        return plain
    return _client().wrap_socket(plain)


@functools.cache
def _client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def reader(port: int, secure: bool) -> int:
    """A child process that reads until the end."""
    pid = os.fork()
    if pid:
        return pid
    with dialed(port, secure) as end:
        end.sendall(UPGRADE)
        while end.recv(1 << 20):
            pass
    os._exit(0)


async def frames(security: Security, secure: bool, data: bytes, count: int) -> float:
    """Microseconds of processor time for each frame that goes out by the front's outbox."""
    found: list[float] = []
    done = trio.Event()

    async def handle(connection: DuplexServerConnection) -> None:
        async with trio.open_nursery() as nursery:
            box = Outbox(StreamSocket(connection, 0), 1000, lambda skipped: None)
            nursery.start_soon(box.run)
            for _ in range(50):
                box.post(Item(data, 0, True))
                await trio.sleep(0)
            begun = time.process_time()
            for k in range(count):
                box.post(Item(data, 0, True))
                await trio.lowlevel.checkpoint()
                if k % 10 == 9:
                    await trio.sleep(0.01)
            found.append((time.process_time() - begun) / count * 1e6)
            nursery.cancel_scope.cancel()
        done.set()

    def connect(
        nursery: trio.Nursery, stream: trio.abc.Stream, *others: object, **named: object
    ) -> DuplexServerConnection:
        below = security.over(cast(trio.SocketStream, stream))
        return DuplexServerConnection(nursery, below, *others, **named)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: serve(
                handle,
                port=0,
                host="127.0.0.1",
                compression=None,
                create_connection=connect,  # type: ignore[arg-type]
                task_status=task_status,
            )
        )
        pid = reader(server.listeners[0].socket.getsockname()[1], secure)
        await done.wait()
        nursery.cancel_scope.cancel()
    os.waitpid(pid, 0)
    return found[0]


async def handshakes(security: Security, count: int) -> float:
    """Microseconds of processor time for each."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    pid = os.fork()
    if not pid:
        for _ in range(count + 20):
            with dialed(port, True):
                pass
        os._exit(0)
    begun = 0.0
    for k in range(count + 20):
        if k == 20:
            begun = time.process_time()
        async with security.over(await listener.accept()) as stream:
            await stream.receive_some()
    found = (time.process_time() - begun) / count * 1e6
    await listener.aclose()
    os.waitpid(pid, 0)
    return found


async def memory(security: Security) -> float:
    """Kilobytes that each connection adds that has shaken hands, has been heard, and rests."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    pid = os.fork()
    if not pid:
        ends = []
        for _ in range(RESTING):
            ends.append(dialed(port, True))
            ends[-1].sendall(b"x")
        ends[0].recv(1)
        os._exit(0)
    held: list[trio.abc.Stream] = []
    before = own_kb()
    for _ in range(RESTING):
        held.append(security.over(await listener.accept()))
        assert await held[-1].receive_some() == b"x"
    found = (own_kb() - before) / RESTING
    for stream in held:
        await stream.aclose()
    await listener.aclose()
    os.waitpid(pid, 0)
    return found


def own_kb() -> float:
    """This process's memory."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line
    ]
    return float(line.split()[1])


def main() -> None:
    """Measure and print."""
    args = program.options(__doc__, frames=2000, handshakes=300, rounds=5, size=54_000, out=None)
    data = os.urandom(args.size)
    ways = {"without TLS": Security(None, lambda: None)}
    ways |= {kind: Security(certificate(kind), lambda: None) for kind in KEYS}
    a_frame: dict[str, list[float]] = {"without TLS": [], "with TLS": []}
    a_handshake: dict[str, list[float]] = {kind: [] for kind in KEYS}
    first = next(iter(KEYS))
    resting = trio.run(memory, ways[first])
    for _ in range(args.rounds):
        for name, secure in (("without TLS", False), ("with TLS", True)):
            security = ways[first if secure else "without TLS"]
            a_frame[name].append(trio.run(frames, security, secure, data, args.frames))
        for kind in KEYS:
            a_handshake[kind].append(trio.run(handshakes, ways[kind], args.handshakes))
    for what, found in (("a frame", a_frame), ("a handshake", a_handshake)):
        for name, values in found.items():
            print(f"{name:16s} {statistics.median(values):7.1f} us {what}")
    print(f"{resting:.0f} kB for each connection that rests")
    program.keep(
        args.out,
        size=args.size,
        us_per_frame=_rounded(a_frame),
        us_per_handshake=_rounded(a_handshake),
        kb_per_connection=round(resting, 1),
    )


def _rounded(found: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 2) for value in values] for name, values in found.items()}


if __name__ == "__main__":
    main()
