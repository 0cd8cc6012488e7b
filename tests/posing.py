# SPDX-License-Identifier: Apache-2.0
"""A real server whose engines run on the CPU, one thread each, and pose as so many GPUs.

``python posing.py serve FILE COUNT`` is the real supervisor, by that configuration, with real
fronts, told that it has COUNT GPUs; ``python posing.py engine`` is one of its engines, the real one
but for its backend. So placement, restarts and status over many devices are tested without any.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from lipsync_fast.config_load import load
from lipsync_fast.engine import process
from lipsync_fast.engine.scheduler import Scheduler
from lipsync_fast.ipc.children import EngineSpec
from lipsync_fast.logs import setup_logs
from lipsync_fast.supervisor import launch
from lipsync_fast.supervisor.children import Role, own_command
from lipsync_fast.supervisor.gpus import DetectedGpus, Gpu

_create_engine = process.create_scheduler


def create_scheduler(spec: EngineSpec) -> Scheduler:
    """A CPU engine, whatever its device is called."""
    return _create_engine(msgspec.structs.replace(spec, device="cpu", threads=1))


def command(role: Role) -> list[str]:
    """What children are run as."""
    return [sys.executable, "-P", __file__, role] if role == "engine" else own_command(role)


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        process.create_scheduler = create_scheduler
        process.main()
    config = load(Path(sys.argv[2]), {}).config
    setup_logs(config.log, "supervisor")
    gpus = [Gpu(number, str(number)) for number in range(int(sys.argv[3]))]
    sys.exit(launch.serve(config, command=command, gpus=DetectedGpus(gpus)))
