# SPDX-License-Identifier: Apache-2.0
"""Writes what is to be kept, behind the work: a thread that nobody waits for.

    keep ─► waiting, bounded ─► every GATHER_S, what has come as one transaction ─► store

What would be more than ``rate`` on the average is not kept: utterances as a whole, from their first
frame on. A full disk, a file that cannot be written or is held by another one costs what was to be
kept, and nothing else; the log says so once a minute at most.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from lipsync_fast.errors import StoreDamagedError, StoreError
from lipsync_fast.logs import get_logger
from lipsync_fast.utterances.store import Row, Store

log = get_logger("lipsync.utterances")
GATHER_S = 0.3
WAIT_S = 2.0
"""For other writers."""
MOST_WAITING = 64 << 20
"""Bytes of pictures that wait to be written; what comes beyond is not kept."""
BURST_S = 2.0
"""So much of ``rate`` may be written at once after a rest."""
STREAMS = 1024
WARN_S = 60.0
MODEST = 10
"""Niceness of the thread: frames that are being made come first."""
FRESH_S = 3600
"""What was used within this is not noted again as used."""


@dataclass(frozen=True, slots=True)
class Task:
    """A frame to keep.

    Attributes:
        stream: of its sound.
        size: bytes of its picture, which wait with it.
        row: makes what is written, in the thread.
    """

    stream: Hashable
    size: int
    row: Callable[[], Row]


class Admission:
    """Which streams are kept: as many as ``rate`` bytes a second allow, each as a whole.

    A stream is taken while there is something left to spend, and may then spend more than that;
    others wait until it is made up for.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._left, self._at = rate * BURST_S, clock()
        self._streams: OrderedDict[Hashable, bool] = OrderedDict()

    def admits(self, stream: Hashable) -> bool:
        """Whether a frame of a stream is to be kept."""
        if stream not in self._streams:
            now = self._clock()
            self._left = min(self._rate * BURST_S, self._left + (now - self._at) * self._rate)
            self._at = now
            self._streams[stream] = self._left > 0
            while len(self._streams) > STREAMS:
                self._streams.popitem(last=False)
        return self._streams[stream]

    def spent(self, size: int) -> None:
        """So many bytes were written."""
        self._left -= size


class WriteBehind:
    """Keeps frames. ``keep``, ``used`` and ``bad`` return at once; for one thread.

    Args:
        folder, limit: see ``Store``.
        rate: bytes a second that may be written, on the average.

    Attributes:
        counts: frames ``kept`` (and their ``kept_bytes``), ``refused`` (too many at a time, or
            they could not be written), ``evicted`` (given up for others), ``mended`` (times that a
            damaged file was begun anew); only grow.
        store_bytes: what is kept, by whomever.
    """

    def __init__(self, folder: Path, limit: int, rate: float) -> None:
        self._folder, self._limit = folder, limit
        self.counts = dict.fromkeys(("kept", "kept_bytes", "refused", "evicted", "mended"), 0)
        self.store_bytes = 0
        self.renewed = 0
        """Raised when a damaged file was begun anew: readers are to open it again."""
        self._admission = Admission(rate)
        self._lock = threading.Lock()
        self._tasks: deque[Task] = deque()
        self._used: set[int] = set()
        self._bad: set[int] = set()
        self._damaged = False
        self._waiting = 0
        self._something, self._closing = threading.Event(), False
        self._something.set()  # open the file, and see how much is kept
        self._warned = -WARN_S
        self._store: Store | None = None
        self._thread = threading.Thread(target=self._run, name="lipsync-keep", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ what is asked
    def keep(self, task: Task) -> None:
        """Keep a frame, if that may be."""
        with self._lock:
            if self._waiting + task.size > MOST_WAITING or not self._admission.admits(task.stream):
                self.counts["refused"] += 1
                return
            self._tasks.append(task)
            self._waiting += task.size
        self._something.set()

    def used(self, number: int, last: int) -> None:
        """A row was used, which was used last then (s since 1970)."""
        if abs(time.time() - last) > FRESH_S:  # before or, where the clock was set back, after now
            with self._lock:
                self._used.add(number)
            self._something.set()

    def bad(self, numbers: list[int]) -> None:
        """Rows are not what was written."""
        with self._lock:
            self._bad.update(numbers)
        self._something.set()

    def damaged(self) -> None:
        """The file is damaged."""
        self._damaged = True
        self._something.set()

    def close(self) -> None:
        """Write what waits, and end."""
        self._closing = True
        self._something.set()
        self._thread.join()

    # ------------------------------------------------------------ the thread
    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), MODEST)
        while not self._closing:
            self._something.wait()
            if not self._closing:
                time.sleep(GATHER_S)
            self._something.clear()
            self._write_all()
        if self._tasks or self._used or self._bad:  # came while that was written
            self._write_all()
        if self._store is not None:
            self._store.close()

    def _write_all(self) -> None:
        with self._lock:
            tasks, self._tasks, self._waiting = list(self._tasks), deque(), 0
            used, self._used = list(self._used), set()
            bad, self._bad = list(self._bad), set()
        try:
            store = self._ready()
            if bad:
                store.remove(bad)
            if used:
                store.touch(used)
            if tasks:
                self._add(store, [task.row() for task in tasks])
            self.store_bytes = store.used_bytes()
        except StoreError as error:
            with self._lock:
                self.counts["refused"] += len(tasks)
            if isinstance(error, StoreDamagedError):
                self.damaged()
            self._warn(str(error))
        except Exception:
            with self._lock:
                self.counts["refused"] += len(tasks)
            log.exception("frames cannot be kept")

    def _ready(self) -> Store:
        """The file, opened, and mended where it was damaged or replaced."""
        if self._store is None:
            self._store = Store(self._folder, self._limit, WAIT_S)
        elif self._damaged or self._store.replaced:
            before, self._store = self._store, None
            self._store = before.mended()
            self.counts["mended"] += 1
            self.renewed += 1
        self._damaged = False
        return self._store

    def _add(self, store: Store, rows: list[Row]) -> None:
        before = store.added_bytes
        added, dropped = store.add(rows)
        with self._lock:
            self._admission.spent(sum(row.size for row in rows))
            self.counts["kept"] += added
            self.counts["kept_bytes"] += store.added_bytes - before
            self.counts["evicted"] += dropped

    def _warn(self, what: str) -> None:
        now = time.monotonic()
        if now - self._warned >= WARN_S:
            self._warned = now
            log.warning("frames are not kept", reason=what)
