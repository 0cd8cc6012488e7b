# SPDX-License-Identifier: Apache-2.0
"""The simulation of many GPUs, where its results can be known beforehand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def simulate() -> ModuleType:
    """bench/simulate.py."""
    path = Path(__file__).parents[2] / "bench" / "simulate.py"
    spec = importlib.util.spec_from_file_location("simulate", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["simulate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TIMES = {
    "batch_ms": {"1": 1.0, "2": 1.6, "4": 2.8, "8": 5.0, "16": 10.0},
    "host_us_per_frame": 100.0,
    "wake_us": 300.0,
}


def run(simulate: ModuleType, gpus: int, sessions: int, policy: str = "ours") -> dict[str, float]:
    times = simulate.Times.of(TIMES)
    row: dict[str, float] = simulate.Run(times, gpus, sessions, policy, bursts=False).go().row()
    return row


def test_a_session_alone_takes_what_its_steps_take(simulate: ModuleType) -> None:
    row = run(simulate, 1, 1)
    assert row["p50_ms"] == row["most_ms"] == pytest.approx(1.0 + 0.1 + 0.3)
    assert row["late"] == 0
    assert row["frames_per_s"] == pytest.approx(25, abs=0.5)
    assert row["busy"] == pytest.approx(0.025, abs=0.002)


def test_no_more_is_made_than_devices_can_make(simulate: ModuleType) -> None:
    """1,600 frames a second in the best batches; 100 sessions ask for 2,500."""
    assert simulate.Times.of(TIMES).capacity == pytest.approx(1600)
    for policy in simulate.POLICIES:
        row = run(simulate, 1, 100, policy)
        assert 1300 < row["frames_per_s"] <= 1600
        assert 0.35 < row["late"] < 0.5
        assert row["most_ms"] < 66


def test_with_one_device_both_schedulers_are_one(simulate: ModuleType) -> None:
    assert run(simulate, 1, 40) == run(simulate, 1, 40, "perfect")


def test_placed_sessions_come_near_to_one_queue(simulate: ModuleType) -> None:
    ours, perfect = (run(simulate, 4, 180, policy) for policy in simulate.POLICIES)
    assert ours["late"] == perfect["late"] == 0
    assert perfect["p99_ms"] <= ours["p99_ms"] < 40
    assert ours["frames_per_s"] == pytest.approx(perfect["frames_per_s"], rel=0.01)


def test_the_same_seed_gives_the_same_run(simulate: ModuleType) -> None:
    assert run(simulate, 2, 50) == run(simulate, 2, 50)
