# SPDX-License-Identifier: Apache-2.0
"""The ring between two processes: many records, and kill -9 of either side at any moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "ring_peers.py"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PEERS), *arguments], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_pass_a_million() -> None:
    run("--pass", "1000000")


def test_either_side_killed() -> None:
    told = run("1000", "1")
    assert told.startswith("1000 kills")
    assert int(told.split()[2]) > 1000, "hardly anything was passed"
