# SPDX-License-Identifier: Apache-2.0
"""How long a child has said nothing that could have said something.

One that waits for a processor cannot: on a machine with too much to do, it would be killed for the
work of others, and its successor's start would be more of it. The kernel counts how long a process
has waited in line; one that is stuck, or stopped, does not stand there.
"""

from __future__ import annotations

from pathlib import Path

MOST = 5.0
"""What waits for a processor is excused for so many times the silence that is allowed."""


def waited_s(pid: int) -> float:
    """How long the first thread of a process has waited for processors; 0 where nobody counts."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


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
        return max(silent - (waited_s - self._waited_s), silent / MOST)
