# SPDX-License-Identifier: Apache-2.0
"""Whether a child that is not ready yet gets on with its start, or stands still.

How long a start takes says nothing: beside busy neighbours, one of the lowest priority may take
minutes. What tells is whether it does anything: it says something, uses a processor, or reads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STILL_S = 60.0
"""A child that has done nothing for so long hangs."""
DOUBLINGS = 4
"""Its successors are given twice as long each time, up to so many times: the machine may be what
is slow."""
LEAST_CPU_S, LEAST_FAULTS = 0.1, 64
"""What counts as doing something: processor time used, or pages read from a disk."""
MOST_CPU_S = 900.0
"""A start that has used so much processor time goes in circles."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used so far: processor time, and pages that it had to wait for."""

    cpu_s: float = 0.0
    faults: int = 0


def used_by(pid: int) -> Used:
    """What a process has used; nothing where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks, faults = int(fields[11]) + int(fields[12]), int(fields[9])
    except (OSError, IndexError, ValueError):
        return Used()
    return Used(ticks / os.sysconf("SC_CLK_TCK"), faults)


class StartWatch:
    """Watches one start. No clock is read here; times are seconds.

    Args:
        failures: children in a row before this one that have died young.
        now: when it was started.
    """

    def __init__(self, failures: int, now: float) -> None:
        self.patience_s = STILL_S * 2.0 ** min(failures, DOUBLINGS)
        self._used, self._since = Used(), now

    def did_something(self, now: float) -> None:
        """It has said something; or it could not, since all stood still."""
        self._since = max(self._since, now)

    def look(self, used: Used, now: float) -> str | None:
        """Why it is to be given up; None where it gets on."""
        cpu_s, faults = used.cpu_s - self._used.cpu_s, used.faults - self._used.faults
        if cpu_s >= LEAST_CPU_S or faults >= LEAST_FAULTS:
            self._used, self._since = used, now
        if used.cpu_s > MOST_CPU_S:
            return f"not ready after {MOST_CPU_S:g} s of processor time"
        if now - self._since > self.patience_s:
            return f"not ready, and has done nothing for {self.patience_s:g} s"
        return None
