# SPDX-License-Identifier: Apache-2.0
"""Real engine processes for tests, started as the supervisor starts them, and a front's rings."""

from __future__ import annotations

import itertools
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from lipsync_fast.audio.windows import AudioWindow, frame_count
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.ipc.children import EngineSpec
from lipsync_fast.ipc.control import AnyMessage, Ready
from lipsync_fast.ipc.control_socket import Hub, private_folder
from lipsync_fast.ipc.messages import Answer, Job, Look, read_answer, try_send
from lipsync_fast.ipc.offers import RingSocket
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter
from lipsync_fast.supervisor.children import own_command

DEADLINE_S = 60.0
"""For anything to happen; only failures take that long."""
PLAIN = Look()
M = TypeVar("M", bound=AnyMessage)
_generations = itertools.count(1)


def later(seconds: float = 120.0) -> int:
    """A deadline that is not going to pass."""
    return time.monotonic_ns() + int(seconds * 1e9)


class Engine:
    """A running engine process, and one front's rings to it."""

    def __init__(self, host: Host, name: str, process: subprocess.Popen[bytes], end: RingSocket):
        self.host, self.name, self.process, self.end = host, name, process, end
        self.jobs: RingWriter
        self.answers: RingReader
        self._handles: list[RingHandle] = []

    def connect(self, front: str = "front-1", size: int = 1 << 23) -> None:
        """Give it new rings, and take the front's sides."""
        generation = next(_generations)
        made = [RingHandle.create(size, generation) for _ in range(2)]
        self.jobs, self.answers = RingWriter(made[0]), RingReader(made[1])
        assert self.end.offer(front, made[0], made[1])
        self._handles += made

    def submit(self, job: Job, pcm: NDArray[np.float32] | None = None) -> None:
        payload = b"" if pcm is None else memoryview(pcm).cast("B")
        assert try_send(self.jobs, job, payload), "the job ring is full"

    def answer(self, timeout_s: float = DEADLINE_S) -> tuple[Answer, bytes]:
        """The next answer and its picture."""
        record = self.answers.wait(timeout_s)
        assert record is not None, "no answer"
        answer, payload = read_answer(record)
        jpeg = bytes(payload)
        del payload, record
        self.answers.release()
        return answer, jpeg

    def received(self) -> list[tuple[Answer, bytes]]:
        """All answers that have come."""
        found = []
        while (record := self.answers.next()) is not None:
            answer, payload = read_answer(record)
            found.append((answer, bytes(payload)))
            self.answers.release()
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.kill()
        self.end.close()
        for handle in self._handles:
            handle.close()


class Host:
    """Plays the supervisor: control socket, ring sockets, processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = private_folder(folder)
        self.context = zmq.Context[Any]()
        self.hub = Hub.bind(self.context, self.folder)
        self.engines: list[Engine] = []
        self.seen: list[tuple[str, AnyMessage]] = []

    def start(
        self,
        avatars: dict[str, str],
        *,
        name: str | None = None,
        stderr: IO[bytes] | None = None,
        **more: Any,
    ) -> Engine:
        """Start an engine; ``more`` are fields of its task."""
        name = name or f"engine-{len(self.engines) + 1}"
        ours, theirs = RingSocket.pair()
        spec = EngineSpec(
            name=name,
            folder=str(self.folder),
            rings_fd=theirs.fileno(),
            avatars=avatars,
            **({"threads": 2, "heartbeat_s": 0.05} | more),
        )
        process = subprocess.Popen(
            own_command("engine"),
            stdin=subprocess.PIPE,
            stderr=stderr,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(spec))
        process.stdin.close()
        engine = Engine(self, name, process, ours)
        self.engines.append(engine)
        return engine

    def ready(self, avatars: dict[str, str], **more: Any) -> Engine:
        """An engine that is ready, with a front's rings."""
        engine = self.start(avatars, **more)
        self.expect(engine, Ready)
        engine.connect()
        return engine

    def take(self) -> None:
        """Move what has come to ``seen``."""
        self.seen += self.hub.received()

    def expect(
        self, engine: Engine, kind: type[M], when: Callable[[M], bool] = lambda _: True
    ) -> M:
        """Wait for a message; those seen before count, and are forgotten up to it."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            self.take()
            for k, (name, message) in enumerate(self.seen):
                if name == engine.name and isinstance(message, kind) and when(message):
                    del self.seen[: k + 1]
                    return message
            poll = select.poll()
            poll.register(self.hub.fd, select.POLLIN)
            poll.poll(20)
        raise AssertionError(f"no {kind.__name__} from {engine.name}; seen: {self.seen}")

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
        self.hub.close()
        self.context.term()


def jobs_of(
    sound: NDArray[np.float32],
    window: AudioWindow,
    pictures: Callable[[int], int],
    *,
    session: int = 1,
    stream: int = 1,
    avatar: str = "tiny",
    look: Look = PLAIN,
    piece: int = 3_111,
) -> list[tuple[Job, NDArray[np.float32]]]:
    """A sound's jobs, as a front makes them while it comes in pieces."""
    utterance = Utterance(stream, window)
    jobs: list[tuple[Job, NDArray[np.float32]]] = []

    def make(upto: int) -> None:
        while len(jobs) < upto:
            k = len(jobs)
            speech, pcm = utterance.speech(k)
            job = Job(session, 0, k, avatar, pictures(k), later(), look, speech)
            jobs.append((job, pcm))
            utterance.forget(k + 1)

    for at in range(0, len(sound), piece):
        utterance.push(sound[at : at + piece])
        make(utterance.decided)
    utterance.end()
    make(frame_count(len(sound)))
    return jobs


def own(picture: int, number: int, avatar: str = "tiny", **more: Any) -> Job:
    """A job for the avatar's own picture."""
    return Job(1, 0, number, avatar, picture, later(), **more)


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Sound that has something at every pitch."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(int(16_000 * seconds)) * 0.1).astype(np.float32)


def all_answers(engine: Engine, count: int) -> dict[int, tuple[Answer, bytes]]:
    """So many answers, by number; each must come once."""
    found: dict[int, tuple[Answer, bytes]] = {}
    for _ in range(count):
        answer, jpeg = engine.answer()
        assert answer.number not in found
        found[answer.number] = answer, jpeg
    return found


def open_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
