# SPDX-License-Identifier: Apache-2.0
"""A front with an engine that the test plays, over real rings, and connections in memory."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import trio
from numpy.typing import NDArray

from lipsync_fast.config import Avatars, Limits, ServeConfig
from lipsync_fast.errors import SocketClosedError
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.frontend.legacy.service import LegacyService
from lipsync_fast.frontend.services import Services
from lipsync_fast.ipc.control import AvatarVersion, EngineInfo, Engines
from lipsync_fast.ipc.messages import Answer, Cancel, Job, Status, read_job, samples_of, try_send
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter
from lipsync_fast.tokens.subject import ANYONE

Asked = tuple[Job, NDArray[np.float32]]


class MemorySocket:
    """A connection; the test is the client."""

    subprotocol: str | None = None
    peer = "127.0.0.1"
    subject = ANYONE
    is_call = False

    def __init__(self, kind: Literal["stream", "http"], port: int) -> None:
        self.kind: Literal["stream", "http"] = kind
        self.port = port
        self._to_server, self._from_client = trio.open_memory_channel[str | bytes](10_000)
        self._to_client, self._from_server = trio.open_memory_channel[str | bytes](10_000)
        self.read_by_server = 0
        self.closed_with: tuple[int, str] | None = None
        self.readable = trio.Event()
        self.readable.set()
        """Unset: the client does not read, and nothing can be sent."""

    async def receive(self) -> str | bytes:
        try:
            message = await self._from_client.receive()
        except trio.EndOfChannel:
            raise SocketClosedError from None
        self.read_by_server += 1
        return message

    async def send(self, data: str | bytes) -> None:
        await self.readable.wait()
        await self._to_client.send(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed_with = code, reason

    # ------------------------------------------------------------ the client's side
    def say(self, *messages: str | bytes) -> None:
        for message in messages:
            self._to_server.send_nowait(message)

    async def hear(self) -> str | bytes:
        return await self._from_server.receive()

    def vanish(self) -> None:
        self._to_server.close()


def description(job: Job) -> bytes:
    """What stands for a job's JPEG."""
    return b"\xff\xd8" + msgspec.json.encode(job) + b"\xff\xd9"


@dataclass
class PlayedEngine:
    """An engine that answers when the test says so, or at once."""

    at_once: bool = True
    status: Status = Status.MADE
    waiting: list[Asked] = field(default_factory=list)
    seen: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.handles = RingHandle.create(1 << 22, 1), RingHandle.create(1 << 22, 1)
        self._jobs, self._answers = RingReader(self.handles[0]), RingWriter(self.handles[1])
        self._more = trio.Event()

    async def run(self) -> None:
        while True:
            while (record := self._jobs.next()) is not None:
                job, payload = read_job(record)
                if isinstance(job, Cancel):
                    self._jobs.release()
                    continue
                asked = job, samples_of(payload).copy()
                self._jobs.release()
                self.seen.append(asked)
                self.waiting.append(asked)
                self._more.set()
                self._more = trio.Event()
                if self.at_once:
                    self.answer(0)
            await trio.lowlevel.checkpoint()
            if self._jobs.want_data():
                await trio.lowlevel.wait_readable(self._jobs.doorbell)
                self._jobs.drain()

    async def asked(self, count: int) -> None:
        """Wait for jobs."""
        while len(self.waiting) < count:
            await self._more.wait()

    def answer(self, place: int) -> None:
        """Answer one of those that wait."""
        job, _ = self.waiting.pop(place)
        answer = Answer(job.session, job.epoch, job.number, self.status, reason="it is broken")
        assert try_send(self._answers, answer, description(job))


@dataclass
class World:
    services: Services
    engine: PlayedEngine
    nursery: trio.Nursery

    def __post_init__(self) -> None:
        self.legacy = LegacyService(self.services)

    def connect(
        self, *first: str | bytes, kind: Literal["stream", "http"] = "stream", port: int = 40_000
    ) -> MemorySocket:
        """A client that has said something."""
        socket = MemorySocket(kind, port)
        socket.say(*first)
        self.nursery.start_soon(self._serve, socket)
        return socket

    async def _serve(self, socket: MemorySocket) -> None:
        visit = self.services.accounts.open(socket.subject, socket.peer)
        await self.legacy.serve(socket, visit, await socket.receive())


@contextlib.asynccontextmanager
async def world(folder: Path, **limits: float) -> AsyncIterator[World]:
    """A front that serves the avatars of a folder, "tiny" by default."""
    config = ServeConfig(
        avatars=Avatars(folders=(str(folder),), default="tiny"),
        limits=msgspec.convert(limits, Limits),
    )
    async with trio.open_nursery() as nursery:
        pool = EnginePool(nursery)
        services = Services.of(config, pool, lambda message: None)
        engine = PlayedEngine()
        pool.attach("engine-1", *engine.handles)
        info = EngineInfo(
            name="engine-1", device="cpu", active=True, capacity=50.0, avatars=["tiny"]
        )
        tiny = AvatarVersion(name="tiny", key="tiny", number=1, path=str(folder / "tiny"))
        services.apply_update(Engines(engines=[info], avatars=[tiny], catalogue=1))
        nursery.start_soon(engine.run)
        try:
            yield World(services, engine, nursery)
        finally:
            nursery.cancel_scope.cancel()
            services.close()
    pool.gone("engine-1")


def run(body: Callable[..., object], *arguments: object, **options: object) -> None:
    """Run an async test."""
    trio.run(lambda: body(*arguments), **options)  # type: ignore[arg-type,return-value]


# ---------------------------------------------------------------- messages, written by hand
def request(frame_id: int, audio: bytes = b"", name: bytes = b"tiny") -> bytes:
    head = struct.pack("<I", len(name)) + name
    return head + struct.pack("<II", frame_id, len(audio)) + audio


@dataclass(frozen=True)
class Got:
    """A binary reply."""

    kind: int
    frame_id: int
    body: bytes
    bounds: tuple[float, ...] = ()

    @property
    def job(self) -> Job:
        """The job whose description stands for the JPEG."""
        body = self.body.rstrip(b"\0")
        assert body.startswith(b"\xff\xd8")
        assert body.endswith(b"\xff\xd9")
        return msgspec.json.decode(body[2:-2], type=Job)


def got(data: str | bytes) -> Got:
    """Take a binary reply apart."""
    assert isinstance(data, bytes)
    kind, frame_id, _, size = struct.unpack_from("<BIII", data)
    body, rest = data[13 : 13 + size], data[13 + size :]
    if kind == 0:
        assert rest == b""
        return Got(kind, frame_id, body)
    assert kind == 1
    assert (17 + size) % 4 == 0
    count, *bounds = struct.unpack("<I4f", rest)
    assert count == 16
    return Got(kind, frame_id, body, tuple(bounds))
