# SPDX-License-Identifier: Apache-2.0
"""How long a child has said nothing that could have said something.

One that waits for a processor cannot: on a machine with too much to do, it would be killed for the
work of others, and its successor's start would be more of it. The kernel counts how long a thread
has waited in line; one that is stuck, or stopped, does not stand there. All threads count: the one
that speaks for a process may itself wait for another, for the sound's features or the interpreter.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
MOST = 5.0
"""What waits for a processor is excused for so many times the silence that is allowed."""


def waited_s(pid: int, proc: Path = PROC) -> float:
    """How long threads of a process have waited for processors, all together; 0 where nobody
    counts. Those that have ended count no more."""
    # By descriptors alone, which costs a third of what paths cost: this is read again and again for
    # each thread of each child, and most of what a server at rest does.
    waited_ns = 0
    with contextlib.suppress(OSError), _opened(f"{proc}/{pid}/task", os.O_DIRECTORY) as tasks:
        for task in os.listdir(tasks):
            with (
                contextlib.suppress(OSError, IndexError, ValueError),
                _opened(f"{task}/schedstat", 0, tasks) as file,
            ):
                waited_ns += int(os.read(file, 100).split()[1])
    return waited_ns / 1e9


@contextlib.contextmanager
def _opened(path: str, flags: int, folder: int | None = None) -> Iterator[int]:
    """A descriptor for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


class Silence:
    """Follows one child. No clock is read here; times are seconds."""

    def __init__(self) -> None:
        self._heard_at = self._waited_s = 0.0

    def of(self, heard_at: float, waited_s: float, now: float) -> float:
        """How long it has been silent without a reason, for a look now and then.

        Args:
            heard_at: when it was heard last.
            waited_s: for processors, ever.
        """
        if heard_at != self._heard_at:
            self._heard_at, self._waited_s = heard_at, waited_s
        silent = now - heard_at
        waited = max(0.0, waited_s - self._waited_s)  # the sum falls where a thread has ended
        return max(silent - waited, silent / MOST)
