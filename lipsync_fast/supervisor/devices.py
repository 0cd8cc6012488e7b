# SPDX-License-Identifier: Apache-2.0
"""Which engines a machine gets."""

from __future__ import annotations

from dataclasses import dataclass, field

from lipsync_fast.config import Engines
from lipsync_fast.errors import ServerError
from lipsync_fast.machine import OWN_FROM, processors
from lipsync_fast.supervisor.gpus import DetectedGpus, Gpu, detect_gpus


@dataclass(frozen=True)
class DevicePlan:
    """Engines to run.

    Attributes:
        devices: of the engines that work, one each: "cpu" or "cuda:N".
        spares: devices of those that are kept ready.
        threads: of a CPU engine.
        gpus: that engines run on, by device.
        remark: what the operator should know of the choice, or nothing.
        alarming: whether the remark tells of something that should be put right.
    """

    devices: list[str]
    spares: list[str]
    threads: int
    gpus: dict[str, Gpu] = field(default_factory=dict)
    remark: str = ""
    alarming: bool = False


def plan_devices(config: Engines, fronts: int, detected: DetectedGpus | None = None) -> DevicePlan:
    """Engines by configuration and machine.

    Args:
        config: what is asked for.
        fronts: front processes that need processors too.
        detected: the machine's GPUs; detected here where None.

    Raises:
        ServerError: GPUs are asked for by number that cannot be used.
    """
    if config.gpus == "none":
        detected = DetectedGpus()
    elif detected is None:
        detected = detect_gpus()
    use, remark = _chosen(config.gpus, detected)
    kinds = [gpu.device for gpu in use] or ["cpu"]
    devices = kinds * config.per_gpu
    spares = [kinds[k % len(kinds)] for k in range(config.spares)]
    return DevicePlan(
        devices,
        spares,
        threads=config.threads or cpu_threads(processors(), len(devices), fronts),
        gpus={gpu.device: gpu for gpu in use},
        remark=remark,
        alarming=bool(detected.gpus and detected.missing),
    )


def _chosen(asked: str, detected: DetectedGpus) -> tuple[list[Gpu], str]:
    """The GPUs to use, and a remark on the choice."""
    count = len(detected.gpus)
    problem = "no NVIDIA GPU was found"
    if detected.gpus and detected.missing:
        were = "NVIDIA GPU was" if count == 1 else "NVIDIA GPUs were"
        problem = f"{count} {were} found but cannot be used: {detected.missing}"
    usable = [] if detected.missing else detected.gpus
    if asked == "none":
        return [], ""
    if asked == "all":
        return usable, "" if usable else f"{problem}; engines run on the CPU"
    if not usable:
        raise ServerError(f"engines.gpus = {asked!r}: {problem}; 'none' serves on the CPU")
    numbers = sorted({int(number) for number in asked.split(",")})
    if beyond := [number for number in numbers if number >= count]:
        raise ServerError(
            f"engines.gpus = {asked!r}: there is no GPU {beyond[0]} here; "
            f"there are: {', '.join(map(str, range(count)))}"
        )
    return [usable[number] for number in numbers], ""


def cpu_threads(processors: int, engines: int, fronts: int) -> int:
    """Threads of a CPU engine where none are configured.

    An engine makes as many frames at a time as it has threads, each in one. From four processors
    on, each front keeps one for itself; with fewer, threads take all and the kernel shares them
    out: a front needs a few per cent of one, which is less than what an idle one would lose.
    """
    free = processors - fronts if processors >= OWN_FROM else processors
    return max(1, free // engines)
