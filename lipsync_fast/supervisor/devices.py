# SPDX-License-Identifier: Apache-2.0
"""Which engines a machine gets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lipsync_fast.config import Engines
from lipsync_fast.errors import ServerError
from lipsync_fast.machine import OWN_FROM, processors

CUDA = False
"""Whether this version has a CUDA backend."""


@dataclass(frozen=True)
class Plan:
    """Engines to run.

    Attributes:
        devices: of the engines that work, one each: "cpu" or "cuda:N".
        spares: devices of those that are kept ready.
        threads: of a CPU engine.
        remark: what the operator should know of the choice, or nothing.
    """

    devices: list[str]
    spares: list[str]
    threads: int
    remark: str = ""


def plan(config: Engines, fronts: int, gpus: list[int] | None = None) -> Plan:
    """Engines by configuration and machine.

    Args:
        config: what is asked for.
        fronts: front processes that need processors too.
        gpus: numbers of the machine's GPUs; looked up where None.

    Raises:
        ServerError: GPUs are asked for by number that cannot be used.
    """
    gpus = nvidia_gpus() if gpus is None else gpus
    remark, use = "", []
    if config.gpus == "all":
        if gpus and CUDA:
            use = gpus
        elif gpus:
            remark = (
                f"this machine has {len(gpus)} GPUs, but the engines of this version run on the CPU"
            )
    elif config.gpus != "none":
        use = sorted({int(number) for number in config.gpus.split(",")})
        if not CUDA:
            raise ServerError(
                f"engines.gpus = {config.gpus!r}: this version has no engine for GPUs; use 'none'"
            )
        if missing := [number for number in use if number not in gpus]:
            raise ServerError(
                f"engines.gpus = {config.gpus!r}: there is no GPU {missing[0]} here; "
                f"there are: {', '.join(map(str, gpus)) or 'none'}"
            )
    kinds = [f"cuda:{number}" for number in use] or ["cpu"]
    devices = kinds * config.per_gpu
    spares = [kinds[k % len(kinds)] for k in range(config.spares)]
    threads = config.threads or cpu_threads(processors(), len(devices), fronts)
    return Plan(devices, spares, threads, remark)


def cpu_threads(processors: int, engines: int, fronts: int) -> int:
    """Threads of a CPU engine where none are configured.

    An engine makes as many frames at a time as it has threads, each in one. From four processors
    on, each front keeps one for itself; with fewer, threads take all and the kernel shares them
    out: a front needs a few per cent of one, which is less than what an idle one would lose.
    """
    free = processors - fronts if processors >= OWN_FROM else processors
    return max(1, free // engines)


def nvidia_gpus() -> list[int]:
    """Numbers of the NVIDIA GPUs that the kernel shows, without asking CUDA."""
    names = [path.name for path in Path("/dev").glob("nvidia*")]
    found = [int(m[1]) for name in names if (m := re.fullmatch(r"nvidia(\d+)", name))]
    return sorted(found)
