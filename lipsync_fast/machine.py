# SPDX-License-Identifier: Apache-2.0
"""The processors that this machine lets us use, and who shares them."""

from __future__ import annotations

import os
from pathlib import Path

OWN_FROM = 4
"""Processors from which on each front keeps one for itself; with fewer, engines use all."""


def processors() -> int:
    """Processors that this process may use, by affinity and by its control group's quota."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no such limit here
    return count


def are_shared() -> bool:
    """Whether CPU engines and fronts use the same processors."""
    return processors() < OWN_FROM
