# SPDX-License-Identifier: Apache-2.0
"""docs/scale.md says what was measured and simulated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from documents import ROOT

RESULTS = ROOT / "bench" / "results"
TEXT = (ROOT / "docs" / "scale.md").read_text()


def program(name: str) -> ModuleType:
    """One of bench/."""
    path = Path(ROOT) / "bench" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"scale_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, f"scale_{name}", module)
        spec.loader.exec_module(module)
    return module


def test_what_was_simulated_is_told() -> None:
    report, simulate = program("fleet_report"), program("simulate_fleet")
    found = json.loads((RESULTS / "simulate" / "fleet.json").read_text())
    rows = [*report.simulated(found, simulate.POLICIES), *report.sizes(found)]
    rows += report.a_day(found)
    assert len(rows) >= 14
    for row in rows:
        assert row in TEXT


def test_what_was_measured_is_told() -> None:
    folder = RESULTS / "fleet"
    found = [json.loads((folder / f"{name}.json").read_text()) for name in ("haproxy", "envoy")]
    rows = list(program("fleet_report").measured(found))
    assert len(rows) == 8
    for row in rows:
        assert row in TEXT
    steps = [step for each in found for run in each["runs"] for step in run["steps"]]
    assert not any(step["elsewhere"]["lost"] or step["outages_elsewhere"] for step in steps)
    assert all(step["not_back"] == 0 for step in steps)
