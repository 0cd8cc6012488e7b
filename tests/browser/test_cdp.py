# SPDX-License-Identifier: Apache-2.0
"""The browser that tests start: it is theirs alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cdp import chromium
from serving import lives, until

PROGRAM = """
import sys, time
from pathlib import Path
from cdp import Browser
print(Browser(Path(sys.argv[1])).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_it_ends_with_whoever_has_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert lives(pid)
        program.kill()
    until(lambda: not lives(pid), "for Chromium's end")
    until(lambda: not (tmp_path / "profile").exists(), "for its files")
