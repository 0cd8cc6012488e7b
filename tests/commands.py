# SPDX-License-Identifier: Apache-2.0
"""What tests of the command line look at, and run in their own process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from typer.main import get_command

from lipsync_fast.cli.main import app

LINE: Any = get_command(app)
"""The command line. To build it takes 0.1 s, which is more than most that is tried with it."""


@dataclass
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """What ``--json`` wrote."""
        found: dict[str, Any] = json.loads(self.out)
        return found
