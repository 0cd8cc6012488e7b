# SPDX-License-Identifier: Apache-2.0
"""How long a child has said nothing that could have said something.

One that waits for a processor cannot: on a machine with too much to do, it would be killed for the
work of others, and its successor's start would be more of it. The kernel counts how long a thread
has waited in line; one that is stuck, or stopped, does not stand there. All threads count: the one
that speaks for a process may itself wait for another, for the sound's features or the interpreter.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

PROC = Path("/proc")
MOST = 5.0
"""What waits for a processor is excused for so many times the silence that is allowed."""


def waited_s(pid: int, proc: Path = PROC) -> float:
    """How long threads of a process have waited for processors, all together; 0 where nobody
    counts. Those that have ended count no more."""
    waited_ns = 0
    with contextlib.suppress(OSError):
        for task in (proc / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):
                waited_ns += int((task / "schedstat").read_text().split()[1])
    return waited_ns / 1e9


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
