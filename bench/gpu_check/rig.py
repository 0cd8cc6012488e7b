# SPDX-License-Identifier: Apache-2.0
"""An engine on the device in a process of its own, fed through its rings as a front feeds it.

    this process: sounds ─► jobs ring ─► Engine with CudaBackend ─► answers ring ─► this process
                          lines of JSON, for what is asked now and then

The other process is born here, so that what it takes to start is what it takes anywhere.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipsync_fast.arrays import F32
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.ipc.messages import Answer, Job, Look, Status, read_answer, try_send
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter
from lipsync_fast.timing import FRAME_SAMPLES

RING_BYTES = 1 << 27
PATIENCE_S = 60.0
FAR_NS = 1 << 61


# ---------------------------------------------------------------- the engine's process
def serve(told: dict[str, Any]) -> None:
    """Be the engine, until standard input ends."""
    from lipsync_fast.engine.backends.cuda.backend import CudaBackend
    from lipsync_fast.engine.backends.cuda.device import CudaDevice, Device, HostDevice
    from lipsync_fast.engine.scheduler import Scheduler
    from lipsync_fast.engine.splice import FrameEncoder

    kind = told["precision"]
    device: Device = HostDevice() if told["dry"] else CudaDevice(0, exact=kind == "fp32")
    sizes = {"sizes": (1, 2)} if told["dry"] else {}
    backend = CudaBackend(device, precision=kind, live=True, **sizes)
    engine = Scheduler(backend, FrameEncoder())
    for name, path in told["avatars"].items():
        engine.registry.load(name, path)
        engine.registry.avatars[name].used = True
    jobs, answers = (RingHandle(*fds) for fds in told["rings"])
    engine.fronts.attach("front-1", jobs, answers)
    _say("ready")
    graphs = threading.Thread(target=_tell_of_graphs, args=(backend,))
    graphs.start()
    try:
        _loop(engine, backend)
    finally:
        engine.close()
        graphs.join()


def _tell_of_graphs(backend: Any) -> None:
    backend.warming.wait()
    _say("graphs")


def _loop(engine: Any, backend: Any) -> None:
    polled = 0
    while True:
        worked, polled = engine.step(), polled + 1
        if worked and polled % 64:
            continue
        timeout_ms = 0
        if not worked:
            timeout_ms = int(engine.warm() * 1000) + 1
            timeout_ms = timeout_ms if engine.may_sleep() else 0
        poll = select.poll()
        for fd in (*engine.doorbells(), 0):
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(timeout_ms))
        engine.drain()
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            _obey(engine, backend, json.loads(line))


def _obey(engine: Any, backend: Any, told: dict[str, Any]) -> None:
    if told["do"] == "load":
        engine.registry.load(told["name"], told["path"])
        backend.warming.wait()
    halves = [s.loaded.images.allocated for s in engine.registry.avatars.values()]
    free, total = backend.device.memory()
    _say(
        "state",
        used=total - free,
        halves=sum(halves),
        caches=backend.cache_bytes,
        spent=backend.cpu_time.seconds,
        chores=any(s.unprepared or s.unwarmed for s in engine.registry.avatars.values()),
    )


def _say(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, "ns": time.monotonic_ns(), **more}), flush=True)


# ---------------------------------------------------------------- this process
class Rig:
    """A running engine and its rings.

    Args:
        avatars: by name.
        precision: of the networks.
        dry: on the host.
    """

    def __init__(self, avatars: dict[str, Path], precision: str, dry: bool) -> None:
        handles = [RingHandle.create(RING_BYTES, 1) for _ in range(2)]
        self.jobs, self.answers = RingWriter(handles[0]), RingReader(handles[1])
        told = {
            "avatars": {name: str(path) for name, path in avatars.items()},
            "precision": precision,
            "dry": dry,
            "rings": [[*handle.fds, handle.generation] for handle in handles],
        }
        self.born_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu_check.rig", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd for handle in handles for fd in handle.fds],
            text=True,
        )
        for handle in handles:
            os.set_inheritable(handle.memory, False)
        self._handles = handles

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for handle in self._handles:
            handle.close()

    def expect(self, what: str) -> dict[str, Any]:
        """The next line of that kind.

        Raises:
            RuntimeError: the engine has ended.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                told: dict[str, Any] = json.loads(line)
            except ValueError:
                print(line, end="", flush=True)
                continue
            if told["what"] == what:
                return told
        raise RuntimeError(f"the engine has ended: exit status {self._process.wait(10)}")

    def ask(self, **what: Any) -> dict[str, Any]:
        """Have something done; the state after it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then it says nothing, either
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        return self.expect("state")

    def settle(self, limit_s: float) -> dict[str, Any]:
        """Wait until all that can be made ready ahead is; the state then."""
        until = time.monotonic() + limit_s
        while True:
            state = self.ask(do="state")
            if not state["chores"] or time.monotonic() > until:
                return state
            time.sleep(0.1)

    def put(self, job: Job, pcm: F32) -> None:
        """A job into the ring.

        Raises:
            RuntimeError: there is no room for it.
        """
        if not try_send(self.jobs, job, pcm.data.cast("B")):
            raise RuntimeError("the job ring is full")

    def take(self, timeout_s: float) -> tuple[Answer, int] | None:
        """The next answer and how many bytes its picture has, None where none came.

        Raises:
            RuntimeError: a picture was not made.
        """
        record = self.answers.next() if timeout_s <= 0 else self.answers.wait(timeout_s)
        if record is None:
            return None
        answer, payload = read_answer(record)
        size, good = len(payload), bytes(payload[:2]) == b"\xff\xd8"
        del payload, record
        self.answers.release()
        if answer.status != Status.MADE or not good:
            raise RuntimeError(f"frame {answer.number}: {answer.status.name} {answer.reason}")
        return answer, size

    def last(self) -> bytes:
        """The next answer's picture.

        Raises:
            RuntimeError: none came, or it was not made.
        """
        record = self.answers.wait(PATIENCE_S)
        if record is None:
            raise RuntimeError("no answer")
        answer, payload = read_answer(record)
        jpeg = bytes(payload)
        del payload, record
        self.answers.release()
        if answer.status != Status.MADE:
            raise RuntimeError(f"frame {answer.number}: {answer.status.name} {answer.reason}")
        return jpeg


# ---------------------------------------------------------------- sounds and jobs
class Speaker:
    """A session: a sound of its own, as it comes, and its jobs."""

    def __init__(
        self, number: int, avatar: str, manifest: Manifest, rng: np.random.Generator, seconds: float
    ) -> None:
        self.number, self.avatar, self._manifest = number, avatar, manifest
        self.utterance = Utterance(number, manifest.audio)
        samples = int(seconds * 16_000)
        level = np.repeat(rng.uniform(0.003, 0.3, samples // 1600 + 1), 1600)[:samples]
        noise = rng.standard_normal(samples, np.float32)
        self._sound = (np.clip(noise * level, -1, 1)).astype(np.float32)
        self._at = 0
        self._start = int(rng.integers(0, manifest.frame_count))
        self.made = 0

    def hear(self, samples: int = FRAME_SAMPLES) -> None:
        """More of its sound has come."""
        self.utterance.push(self._sound[self._at : self._at + samples])
        self._at += samples

    @property
    def ended(self) -> bool:
        """Whether all of its sound has come."""
        return self._at + FRAME_SAMPLES > len(self._sound)

    def jobs(self) -> Iterator[tuple[Job, F32]]:
        """Jobs for the frames that are decided and not yet asked for."""
        while self.made < self.utterance.decided:
            speech, pcm = self.utterance.speech(self.made)
            picture = self._manifest.avatar_frame(self.made, self._start)
            job = Job(self.number, 0, self.made, self.avatar, picture, FAR_NS, Look(), speech)
            yield job, pcm
            self.made += 1
            self.utterance.forget(self.made)


def jobs_of(speakers: Sequence[Speaker], each: int) -> list[tuple[Job, F32]]:
    """So many jobs of each speaker, in turn, as they would come."""
    rows: list[list[tuple[Job, F32]]] = []
    for speaker in speakers:
        row: list[tuple[Job, F32]] = []
        while len(row) < each and not speaker.ended:
            speaker.hear()
            row += list(speaker.jobs())
        rows.append(row[:each])
    return [row[k] for k in range(each) for row in rows if k < len(row)]


@dataclass(frozen=True)
class Busy:
    """How busy the GPU was, by the driver's count: shares of samples, and how many."""

    mean: float
    samples: int


@contextmanager
def busy_share(dry: bool) -> Iterator[list[Busy]]:
    """Watch the GPU meanwhile; the list holds the result afterwards, where it could be read."""
    from gpu_check.context import tool

    smi, found = tool("nvidia-smi"), list[Busy]()
    if dry or smi is None:
        yield found
        return
    command = [smi, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield found
    finally:
        watching.terminate()
        text, _ = watching.communicate(timeout=10)
        numbers = [int(line) for line in text.split() if line.isdigit()]
        if numbers:
            found.append(Busy(round(sum(numbers) / len(numbers), 1), len(numbers)))


def spread(times_ms: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and worst of some times."""
    ordered = sorted(times_ms)
    p50, p99 = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99))
    return {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "most_ms": round(ordered[-1], 3)}


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
