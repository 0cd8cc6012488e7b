# SPDX-License-Identifier: Apache-2.0
"""A real server whose engines can be made slow: each frame then sleeps, and uses no processor.

``python slowed.py serve --config FILE`` is the real supervisor, by that configuration, with real
fronts; ``python slowed.py engine`` is one of its engines. A frame takes as many seconds longer as
the file in the variable SLOWED says, read for each frame; nothing where there is none. What else
takes the machine's processors does not count here, so that a test gets what it has asked for.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lipsync_fast.config_load import load
from lipsync_fast.engine import process
from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.engine.scheduler import Scheduler
from lipsync_fast.ipc.children import EngineSpec
from lipsync_fast.logs import setup_logs
from lipsync_fast.supervisor import launch
from lipsync_fast.supervisor.children import Role, own_command

_create_engine = process.create_scheduler


class SleptTime(CpuTime):
    """Takes what threads have used of processors, and how long they slept, for what frames took."""

    slept_s = 0.0

    @property
    def work_s(self) -> float:
        """What threads would have been busy for, had they had the processors to themselves."""
        return self.slept_s + sum(s for what, s in self.seconds.items() if what in self.WORK)


def create_scheduler(spec: EngineSpec) -> Scheduler:
    """An engine whose frames can be made slow."""
    scheduler = _create_engine(spec)
    backend: Any = scheduler.backend
    make, lock = backend._frame, threading.Lock()
    backend.cpu_time = slept = SleptTime()

    def slowly(job: object) -> object:
        with contextlib.suppress(OSError, ValueError):
            seconds = float(Path(os.environ["SLOWED"]).read_text())
            time.sleep(seconds)
            with lock:
                slept.slept_s += seconds
        return make(job)

    backend._frame = slowly
    return scheduler


def command(role: Role) -> list[str]:
    """What children are run as."""
    return [sys.executable, "-P", __file__, role] if role == "engine" else own_command(role)


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        process.create_scheduler = create_scheduler
        process.main()
    config = load(Path(sys.argv[3])).config
    setup_logs(config.log, "supervisor")
    sys.exit(launch.serve(config, command=command))
