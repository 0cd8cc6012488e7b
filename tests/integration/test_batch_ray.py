# SPDX-License-Identifier: Apache-2.0
"""A batch on a Ray cluster of two nodes, one of which is killed: bench/batch.py, made small.

``make test-ray`` runs this in an environment of its own: Ray brings more than all other tests need.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed: see make test-ray")
BENCH = Path(__file__).resolve().parents[2] / "bench" / "batch.py"
ALONE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
"""Runs a command in a network of its own: Ray binds whatever address the machine has."""


def test_a_node_is_killed_and_nothing_is_lost(tiny_avatar: Path, tmp_path: Path) -> None:
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("there is no unshare, or no ip")
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network of one's own is not permitted here")
    report = tmp_path / "batch.json"
    done = subprocess.run(
        [
            *ALONE, sys.executable, BENCH, "--recordings", "12", "--seconds", "1",
            "--avatar", tiny_avatar, "--only", "killed", "--out", report,
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(report.read_text())["runs"]["killed"]
    assert run["whole"] == 12
    assert run["made"] + run["kept"] == 12
    assert run["twice"] == []
    assert run["killed_at"] < 12
    assert "2" in run["tries"], "the node was killed while it had something in hand"


def test_a_cluster_that_is_not_there(tiny_avatar: Path, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"audio": "a.wav"}\n')
    done = subprocess.run(
        [
            sys.executable, "-m", "lipsync_fast", "batch", "list.jsonl", "--out", "o",
            "--avatar", tiny_avatar, "--ray", "127.0.0.1:9",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--ray 127.0.0.1:9: cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "o").glob(".batch*"))
