# SPDX-License-Identifier: Apache-2.0
"""The client installs anywhere: it needs msgspec and websockets, and nothing of the server."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from documents import ROOT

NEEDED = "lipsync_fast_client", "msgspec", "websockets"
TRIO = "trio", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"


@pytest.mark.parametrize("more", [(), TRIO], ids=["asyncio", "trio"])
def test_it_talks_where_nothing_else_is_installed(tmp_path: Path, more: tuple[str, ...]) -> None:
    """`make test-client` does the same after a real installation."""
    for name in (*NEEDED, *more):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (tmp_path / name).symlink_to(Path(spec.origin).parent)
    program = (
        f"import runpy, sys; sys.path.append({str(tmp_path)!r})\n"
        f"runpy.run_path({str(ROOT / 'tests' / 'client_alone.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"under asyncio{' and trio' if more else ''}\n")
