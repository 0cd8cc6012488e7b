# SPDX-License-Identifier: Apache-2.0
"""The audit log: who was there, when, with which avatar, for how long, and who was refused.

    {"time": "…", "process": "front-1", "event": "ended", "session": "front-1/7", "subject": …}

One JSON object a line, added to a file that all processes of a server share. A thread writes, so
that nobody waits for a disk; what does not fit between is dropped and counted, and so is what a
full disk does not take: the first line that is written again says how many are lost. Whoever
rotates the file moves it away; within a second it is begun anew.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lipsync_fast import canonical
from lipsync_fast.errors import words_of
from lipsync_fast.logs import get_logger
from lipsync_fast.names import json_bytes

log = get_logger("lipsync.audit")
MOST_WAITING = 10_000
"""Lines that may wait to be written."""
LOOK_S, WARN_S = 1.0, 60.0
"""How often it is looked whether the file is still there; how often it is said that it fails."""
MOST_BYTES = 256 << 10
"""Written at once."""
SAID_S, MOST_REFUSED = 60.0, 4096
"""Of a client network, refusals for one reason have a line in so long; so many are counted."""


@dataclass(slots=True)
class _Refused:
    """Refusals of one network for one reason, since the line of when ``at`` was."""

    at: float
    fields: dict[str, Any]
    times: int = 0


class Audit:
    """Writes the lines of one process. ``write`` and ``refused``: one thread.

    Args:
        path: of the file; nothing is written where empty.
        process: this one's name.
        clock: seconds, for what is said once in a while.
    """

    def __init__(
        self, path: str, process: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.process, self._clock = process, clock
        self._refused: dict[tuple[str, str], _Refused] = {}
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        self._file = _File(path) if path else None
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        if self._file is not None:
            self._thread.start()

    def write(self, event: str, **fields: Any) -> None:
        """Something has happened; fields that are None or empty are left out."""
        if self._file is None:
            return
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = {"time": at, "process": self.process, "event": event}
        line |= {k: v for k, v in fields.items() if v is not None and v not in ("", [], {})}
        try:
            self._lines.put_nowait(json_bytes(line) + b"\n")
        except queue.Full:
            self._file.lost += 1

    def refused(self, reason: str, status: int, address: str, subject: str = "") -> None:
        """Somebody was refused: a line at once, and then one a minute, which says how often."""
        if self._file is None:
            return
        now, key = self._clock(), (canonical.network(address), reason)
        self._say_refused(now - SAID_S)
        known = self._refused.get(key)
        if known is not None:
            known.times += 1
            return
        fields = {"reason": reason, "status": status, "address": address, "subject": subject}
        self._refused[key] = _Refused(now, fields)
        self.write("refused", **fields, times=1)
        if len(self._refused) > MOST_REFUSED:
            del self._refused[next(iter(self._refused))]

    def _say_refused(self, until: float) -> None:
        """Say how often, of those whose line is older."""
        while self._refused:
            key = next(iter(self._refused))
            first = self._refused[key]
            if first.at > until:
                return
            del self._refused[key]
            if first.times:
                self.write("refused", **first.fields, times=first.times)

    def close(self, patience_s: float = 2.0) -> None:
        """Write what waits, for so long at most."""
        if self._file is None:
            return
        self._say_refused(float("inf"))
        try:
            self._lines.put(None, timeout=patience_s)
        except queue.Full:
            return
        self._thread.join(patience_s)

    def _run(self) -> None:
        assert self._file is not None
        last = False
        while not last:
            lines, size = [], 0
            line = self._lines.get()
            while line is not None:
                lines.append(line)
                size += len(line)
                if size >= MOST_BYTES or self._lines.empty():
                    break
                line = self._lines.get()
            last = line is None
            self._file.add(lines)
        self._file.close()


class _File:
    """The file, wherever its name leads now. For the thread that writes.

    Attributes:
        lost: lines that were not written, and nobody was told of.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.lost = 0
        self._fd, self._looked_at, self._warned_at = -1, float("-inf"), float("-inf")
        self._torn = False
        """The last line is not whole."""

    def add(self, lines: list[bytes]) -> None:
        """Write lines; nothing is raised where that cannot be."""
        if not lines:
            return
        data = b"".join(lines)
        lost, self.lost = self.lost, 0
        if lost:
            data = json_bytes({"event": "lost", "lines": lost}) + b"\n" + data
        try:
            self._follow()
            left = (b"\n" if self._torn else b"") + data
            while left:
                written = os.write(self._fd, left)
                self._torn = written < len(left)
                left = left[written:]
        except OSError as error:
            self.lost += lost + len(lines)
            self._warn(error)

    def _follow(self) -> None:
        """Open the file where it is not the one that was opened: somebody has moved it away.

        Raises:
            OSError: that cannot be.
        """
        now = time.monotonic()
        if self._fd >= 0 and now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        if self._fd >= 0:
            try:
                there, here = os.stat(self._path), os.fstat(self._fd)
                if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                    return
            except FileNotFoundError:
                pass
            self.close()
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd, self._torn = os.open(self._path, how, 0o600), False

    def _warn(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARN_S:
            self._warned_at = now
            log.error("audit lines are lost", file=self._path, reason=words_of(error))

    def close(self) -> None:
        """Close it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
