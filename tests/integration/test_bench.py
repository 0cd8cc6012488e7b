# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast bench`` on the real server, as short as it goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lipsync_fast.benchmark.hops import NAMES
from lipsync_fast.benchmark.rows import Report


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "lipsync_fast", "bench", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.alone
@pytest.mark.clock
def test_it_measures_and_writes_a_report(tmp_path: Path) -> None:
    done = bench("--quick", "--part", "demo", "--duration", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert "frames/s of the demo avatar end to end" in last
    assert "every sampled frame right" in last
    report = msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Report)
    assert report.sentence == last
    assert [row.kind for row in report.rows] == ["throughput"] * 5
    for row in report.rows:
        assert row.frames > 0
        assert row.frames_per_s == pytest.approx(row.frames / row.seconds, rel=0.01)
        assert {"engine", "front", "load generator"} <= row.cpu_ms_per_frame.keys()
    assert sum(row.compared for row in report.rows) > 0
    whole, mouth = report.rows[1], report.rows[2]
    assert mouth.bytes_per_frame < whole.bytes_per_frame / 2
    assert (tmp_path / "run.md").read_text().startswith(f"# {last}")


@pytest.mark.alone
@pytest.mark.clock
def test_a_frames_way_adds_up(tmp_path: Path) -> None:
    done = bench("--quick", "--part", "profile", "--duration", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Report).rows
    assert list(row.hops_ms) == list(NAMES)
    assert row.traced > 20
    assert sum(row.hops_ms.values()) == pytest.approx(row.mean_ms, rel=0.1)
    assert min(row.hops_ms.values()) > -1.0, "each hop comes behind the one before"
    parts = row.engine_ms_per_frame
    assert parts["decoder"] == max(parts.values())
    assert sum(parts.values()) <= 1.1 * row.cpu_ms_per_frame["engine"]
    assert "hop by hop" in (tmp_path / "run.md").read_text()


def test_what_cannot_be_traced_is_said_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[log]\ntrace = '{tmp_path}/nowhere/trace'\n[listen]\nports = [0]\n")
    command = [sys.executable, "-P", "-m", "lipsync_fast", "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "log.trace" in done.stderr
    assert "Traceback" not in done.stderr


def test_peers_make_the_same_pictures(tmp_path: Path) -> None:
    """The reference's network at full size; what differs is an error of the command."""
    pytest.importorskip("torch", reason="the extra train is not installed")
    done = bench(
        "--quick", "--part", "peers", "--rounds", "1", "--duration", "3", "--threads", "1",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Report)
    assert [row.kind for row in report.rows] == ["peer", "peer", "peer", "ours"]
    assert all(row.is_right for row in report.rows)
