# SPDX-License-Identifier: Apache-2.0
"""Workers as processes of this machine.

One that dies takes its own recording with it, and another one is started in its place. All of them
end with the process that has started them, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Collection
from typing import IO

from lipsync_fast.batch.run import Lost
from lipsync_fast.batch.tasks import Outcome, Recording, Settings
from lipsync_fast.batch.work import STUCK_S, STUCK_STATUS
from lipsync_fast.errors import ServerError, words_of
from lipsync_fast.names import json_bytes, json_value

MOST_YOUNG_DEATHS = 3
"""So many workers in a row that die before they have done anything: nobody can work here."""
_END_S = 3.0


class Processes:
    """So many processes; see ``run.Workers``."""

    def __init__(self, settings: Settings, count: int) -> None:
        """Start them.

        Raises:
            ServerError: not one can be started.
        """
        self._settings, self._count = settings, count
        self._living: dict[int, _Process] = {}
        self._number = self._young_deaths = 0
        self._fill()

    def idle(self) -> Collection[int]:
        """See ``run.Workers``."""
        return [number for number, each in self._living.items() if each.recording is None]

    def give(self, worker: int, recording: Recording) -> None:
        """See ``run.Workers``."""
        self._living[worker].give(recording)

    def wait(self, seconds: float) -> list[Outcome | Lost]:
        """See ``run.Workers``.

        Raises:
            ServerError: processes cannot be started, or die at once.
        """
        ends: list[Outcome | Lost] = []
        with selectors.DefaultSelector() as selector:
            for number, each in self._living.items():
                selector.register(each.out, selectors.EVENT_READ, number)
            for key, _ in selector.select(seconds):
                one = self._living[key.data]
                outcomes, over = one.read()
                ends += outcomes
                if outcomes:
                    self._young_deaths = 0
                if over:
                    del self._living[key.data]
                    reason = one.close()
                    self._young_deaths += not one.has_worked
                    if one.recording is not None:
                        ends.append(Lost(recording=one.recording, reason=reason))
                    if self._young_deaths >= MOST_YOUNG_DEATHS * self._count:
                        raise ServerError(f"workers die before they have done anything: {reason}")
        self._fill()
        return ends

    def close(self) -> None:
        """See ``run.Workers``."""
        for each in self._living.values():
            each.end()
        while self._living:
            self._living.popitem()[1].close()

    def _fill(self) -> None:
        while len(self._living) < self._count:
            try:
                self._living[self._number] = _Process(self._settings)
            except OSError as error:
                if self._living:  # of no process more: those that run are enough
                    return
                raise ServerError(f"no worker can be started: {words_of(error)}") from None
            self._number += 1


class _Process:
    """A worker's process.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, settings: Settings) -> None:
        self.recording: Recording | None = None
        self.has_worked = False
        self._buffer = b""
        # Not a temporary file: where the disk is full, what is said of that must not be lost.
        self._log: IO[bytes] = open(os.memfd_create("lipsync-batch-log"), "w+b")  # noqa: SIM115
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), str(settings.threads))
        command = [sys.executable, "-P", "-m", "lipsync_fast.batch.worker", str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=threads | os.environ,
            )
        except OSError:
            self._log.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[bytes] = self._process.stdin
        self.out: IO[bytes] = self._process.stdout
        os.set_blocking(self.out.fileno(), False)
        self._send(json_bytes(settings))

    def give(self, recording: Recording) -> None:
        """Have it make a recording; one that has died is noticed by ``read``."""
        self.recording = recording
        self._send(json_bytes(recording))

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            self._stdin.write(line + b"\n")
            self._stdin.flush()

    def read(self) -> tuple[list[Outcome], bool]:
        """What has come, and whether it has died."""
        try:
            data = os.read(self.out.fileno(), 1 << 16)
        except BlockingIOError:
            return [], False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        outcomes: list[Outcome] = [json_value(line, Outcome) for line in lines]
        if outcomes:
            self.recording, self.has_worked = None, True
        return outcomes, not data

    def end(self) -> None:
        """Have it end at once."""
        self._process.kill()

    def close(self) -> str:
        """Reap it; says how it ended."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()
        self.out.close()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self._log.close()
        if code == STUCK_STATUS:
            return f"nothing went on for {STUCK_S:.0f} s"
        said = f": {lines[-1][:300]}" if lines else ""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return f"its worker was killed ({name}){said}"
        return f"its worker ended unexpectedly (status {code}){said}"
