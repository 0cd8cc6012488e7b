# SPDX-License-Identifier: Apache-2.0
"""What the processes of a server use, from /proc (Linux): time, memory, descriptors, threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec

from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.machine import processor_model, processors

TICKS = os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One process at one moment.

    Attributes:
        cpu_s: processor time since its birth; rss_mb: resident memory, of it ``private_mb`` its
            own; shm_mb: shared memory that it has mapped and touched.
    """

    cpu_s: float
    rss_mb: float
    private_mb: float
    shm_mb: float
    descriptors: int
    threads: int


def usage(pid: int) -> Usage | None:
    """What a process uses; None when it has gone."""
    folder = Path(f"/proc/{pid}")
    try:
        times = (folder / "stat").read_text().rpartition(")")[2].split()
        lines = (folder / "status").read_text().splitlines()
        descriptors = len(list((folder / "fd").iterdir()))
    except OSError:
        return None
    about = dict(line.split(":", 1) for line in lines if ":" in line)
    if "VmRSS" not in about:  # it has ended and nobody has waited for it
        return None

    def mb(name: str) -> float:
        return round(int(about[name].split()[0]) / 1024, 1)

    return Usage(
        cpu_s=(int(times[11]) + int(times[12])) / TICKS,
        rss_mb=mb("VmRSS"),
        private_mb=mb("RssAnon"),
        shm_mb=mb("RssShmem"),
        descriptors=descriptors,
        threads=int(about["Threads"]),
    )


def pids(status: ServerStatus) -> dict[str, int]:
    """The server's processes by name."""
    fronts = {front.name: front.pid for front in status.fronts if front.pid}
    engines = {engine.name: engine.pid for engine in status.engines if engine.pid}
    return {"supervisor": status.pid, **fronts, **engines}


def shm_files() -> tuple[int, float]:
    """Files under /dev/shm, and their size in MB."""
    count, size = 0, 0
    for path in Path("/dev/shm").rglob("*"):
        try:
            about = path.stat()
        except OSError:
            continue
        count, size = count + 1, size + about.st_blocks * 512
    return count, round(size / 1e6, 2)


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    memory = Path("/proc/meminfo").read_text().splitlines()[0].split()[1]
    return {
        "processor": processor_model(),
        "cores": processors(),
        "memory_gb": round(int(memory) / 2**20, 1),
        "python": platform.python_version(),
        "kernel": platform.release().split("-")[0],
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }
