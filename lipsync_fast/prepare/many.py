# SPDX-License-Identifier: Apache-2.0
"""Many videos over processes: one process for each, so many at a time as there are processors.

A process that dies takes only its own video with it. Leaving early (Ctrl-C) ends all of them; what
they have done is kept in their working folders.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Protocol

from lipsync_fast.errors import words_of
from lipsync_fast.names import json_bytes, json_value
from lipsync_fast.prepare.request import Failure, Message, Progress, Request, Result

_END_S = 3.0


class Watcher(Protocol):
    """Watches what happens, in the caller's thread."""

    def begun(self, request: Request) -> None:
        """A video's process has started."""

    def progressed(self, request: Request, progress: Progress) -> None:
        """How far it is."""

    def ended(self, request: Request, outcome: Result | Failure) -> None:
        """It is done, or has failed."""

    def tick(self) -> None:
        """Time passes, at least five times a second."""


def prepare_many(
    requests: Sequence[Request], workers: int, watcher: Watcher
) -> list[Result | Failure]:
    """Prepare all; what came of each, in their order.

    Where the system starts no more processes, those that run are enough; where none can be started
    at all, each video fails with that.
    """
    waiting = list(enumerate(requests))[::-1]
    outcomes: dict[int, Result | Failure] = {}
    running: dict[int, _Running] = {}
    with selectors.DefaultSelector() as selector, _ended(running):
        while waiting or running:
            while waiting and len(running) < max(1, workers):
                number, request = waiting.pop()
                try:
                    started = _Running(request)
                except OSError as error:
                    if running:  # of no process more: those that run leave room
                        waiting.append((number, request))
                        break
                    outcomes[number] = _not_started(request, error)
                    watcher.begun(request)
                    watcher.ended(request, outcomes[number])
                    continue
                running[number] = started
                selector.register(started.out, selectors.EVENT_READ, number)
                watcher.begun(request)
            for key, _ in selector.select(0.2):
                number = key.data
                one = running[number]
                for message in one.messages():
                    if isinstance(message, Progress):
                        watcher.progressed(one.request, message)
                    else:
                        one.outcome = message
                if one.over:
                    selector.unregister(one.out)
                    outcomes[number] = one.close()
                    del running[number]
                    watcher.ended(one.request, outcomes[number])
            watcher.tick()
    return [outcomes[number] for number in range(len(requests))]


def _not_started(request: Request, error: OSError) -> Failure:
    reason = f"no process can be started for it: {words_of(error)}"
    kept = request.work.is_dir()
    return Failure(name=request.name, video=request.video, reason=reason, kept=kept)


class _Running:
    """A worker process.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.outcome: Result | Failure | None = None
        self.over = False
        self._buffer = b""
        # Not a temporary file: where the disk is full, what is said of that must not be lost.
        self._log: IO[bytes] = open(os.memfd_create("lipsync-prepare-log"), "w+b")  # noqa: SIM115
        # Results must not depend on how many threads add up a sum; the processors are all in use.
        one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lipsync_fast.prepare.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=os.environ | one_thread,
            )
        except OSError:
            self._log.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.out: IO[bytes] = self._process.stdout
        os.set_blocking(self.out.fileno(), False)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json_bytes(request) + b"\n")
            self._process.stdin.flush()

    def messages(self) -> Iterator[Message]:
        """What has come; ``over`` is set when there will be no more."""
        try:
            data = os.read(self.out.fileno(), 1 << 16)
        except BlockingIOError:
            return
        self.over = not data
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            yield json_value(line, Message)

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def close(self) -> Result | Failure:
        """Gather what came of it; kills it if it still runs."""
        process = self._process
        assert process.stdin is not None
        if not self.over:
            self.terminate()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            code = process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self.out.close()
        reason = self._reason(code)
        self._log.close()
        if self.outcome is not None:
            return self.outcome
        return Failure(
            name=self.request.name,
            video=self.request.video,
            reason=reason,
            kept=self.request.work.is_dir(),
        )

    def _reason(self, code: int) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1][:500]}" if lines else ""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return f"its process was killed ({name}){said}"
        return f"its process ended unexpectedly (status {code}){said}"


@contextlib.contextmanager
def _ended(running: dict[int, _Running]) -> Iterator[None]:
    """End what still runs when the block is left, however that comes about."""
    try:
        yield
    finally:
        for one in running.values():
            one.terminate()
        for one in running.values():
            one.close()
