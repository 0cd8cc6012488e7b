# SPDX-License-Identifier: Apache-2.0
"""A real server whose engines have the priority of all else, whatever they do.

``python even_server.py serve --config FILE`` is the real supervisor, with real fronts;
``python even_server.py engine`` is one of its engines. As users have it, an engine that loads what
nobody uses yet leaves the processors to those that speak: beside other tests, which are no part of
this server, that takes minutes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lipsync_fast.config_load import load
from lipsync_fast.engine import process
from lipsync_fast.logs import setup_logs
from lipsync_fast.supervisor import children, launch
from lipsync_fast.supervisor.children import Role, own_command

EVEN = (sys.executable, "-P", __file__, "serve")
"""The server's command."""


def command(role: Role) -> list[str]:
    """What children are run as."""
    return [sys.executable, "-P", __file__, role] if role == "engine" else own_command(role)


def as_all_else(*_: object) -> None:
    """Leave a process's priority as it is."""


def at_once(work: Callable[[], Any]) -> Any:
    """Do something in this thread."""
    return work()


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        process.lower_session = as_all_else
        process.in_background = at_once
        process.main()
    children.lower_session = as_all_else
    config = load(Path(sys.argv[3]), os.environ).config
    setup_logs(config.log, "supervisor")
    sys.exit(launch.serve(config, command=command))
