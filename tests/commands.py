# SPDX-License-Identifier: Apache-2.0
"""What tests of the command line look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


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
