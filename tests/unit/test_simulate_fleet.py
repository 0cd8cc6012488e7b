# SPDX-License-Identifier: Apache-2.0
"""The simulation of many servers, where its results can be known beforehand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def simulate() -> ModuleType:
    """bench/simulate_fleet.py."""
    path = Path(__file__).parents[2] / "bench" / "simulate_fleet.py"
    spec = importlib.util.spec_from_file_location("simulate_fleet", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["simulate_fleet"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steady(simulate: ModuleType, nodes: int, load: float, policy: str) -> dict[str, Any]:
    found: dict[str, Any] = simulate.steady(simulate.equal(nodes, 100), load, policy, 900, 400)
    return found


def test_water_finds_its_level(simulate: ModuleType) -> None:
    random = np.random.default_rng(1)
    given = simulate.filled(np.array([5, 0, 3, 9]), 7, np.ones(4), random)
    assert given.tolist() == [0, 5, 2, 0]
    given = simulate.filled(np.array([0, 0, 0]), 7, np.array([1, 2, 4]), random)
    assert given.tolist() == [1, 2, 4]
    for count in (0, 1, 2, 1000):
        given = simulate.filled(random.integers(0, 50, 20), count, np.ones(20), random)
        assert given.sum() == count
        assert given.min() >= 0


def test_what_is_wanted_is_taken_where_there_is_room(simulate: ModuleType) -> None:
    """A third of the time each of 600 sessions speaks, on 4 nodes of 100 places."""
    found = steady(simulate, 4, 0.5, "least")
    assert found["taken"] == pytest.approx(0.5, abs=0.03)
    assert found["refused"] == 0
    assert found["utterances"] == pytest.approx(500 * 600 / 15, rel=0.1)


def test_no_more_speak_than_there_are_places(simulate: ModuleType) -> None:
    found = steady(simulate, 4, 1.5, "least")
    assert 0.97 < found["taken"] <= found["taken_most"] <= 1
    assert found["refused"] > 0.3


def test_what_a_balancer_knows_matters(simulate: ModuleType) -> None:
    refused = {
        policy: steady(simulate, 20, 0.8, policy)["refused"]
        for policy in ("random", "least", "moves", "speakers")
    }
    assert refused["moves"] <= refused["least"] < refused["random"] < refused["speakers"]


def test_an_upgrade_moves_all_and_cuts_off_none_that_ends_in_time(simulate: ModuleType) -> None:
    def go(drain_s: float) -> dict[str, Any]:
        plan = simulate.Plan(
            simulate.equal(10, 100),
            lambda now: 1500.0 * (simulate.SESSION_S if now == 0 else 1.0),
            upgrade_at=300.0,
            drain_s=drain_s,
            restart_s=30.0,
        )
        found: dict[str, Any] = simulate.run(plan, 1000, every=100)
        return found

    patient, hasty = go(300.0), go(1.0)
    assert patient["cut_off"] == 0 < hasty["cut_off"]
    assert patient["moved"] > 1000
    assert patient["rows"][-1]["nodes"] == 10, "all are back"
    assert patient["rows"][-1]["sessions"] == pytest.approx(1500, rel=0.1), "nobody is lost"


def test_nobody_is_sent_to_a_node_that_has_left(simulate: ModuleType) -> None:
    plan = simulate.Plan(
        simulate.equal(10, 100),
        lambda now: 1500.0 * (simulate.SESSION_S if now == 0 else 1.0),
        upgrade_at=100.0,
        at_once=2,
        restart_s=20.0,
    )
    fleet = simulate.Fleet(plan)
    for now in range(400):
        fleet.step(float(now))
        away = fleet.back_at > now
        assert not fleet.sessions[:, away].any()
    assert not fleet.to_upgrade
    assert fleet.refused == 0


def test_nodes_that_fail_come_back(simulate: ModuleType) -> None:
    plan = simulate.Plan(
        simulate.equal(20, 100),
        lambda now: 3000.0 * (simulate.SESSION_S if now == 0 else 1.0),
        fails_every_s=2000.0,
        down_s=100.0,
    )
    found = simulate.run(plan, 1500, every=10)
    assert found["cut_off"] > 0
    serving = [row["nodes"] for row in found["rows"]]
    assert min(serving) < 20
    assert np.mean(serving) == pytest.approx(20 * 2000 / 2100, abs=0.6)
    assert found["rows"][-1]["sessions"] == pytest.approx(3000, rel=0.1)


def test_as_many_nodes_as_are_needed(simulate: ModuleType) -> None:
    most = 20 * 100 * 0.65 / simulate.SPEAKING
    curve = simulate.of_a_day(most)
    plan = simulate.Plan(simulate.equal(20, 100), curve, scaled=True)
    found = simulate.run(plan, 4000, warm=1800, every=600)
    asleep = [row["nodes"] for row in found["rows"]]
    assert min(asleep) < 8, "a fifth of the sessions needs no twenty nodes"
    assert found["cut_off"] == 0, "who leaves drains first"
    assert found["taken"] > 0.5


def test_the_same_seed_gives_the_same_run(simulate: ModuleType) -> None:
    assert steady(simulate, 3, 0.8, "two") == steady(simulate, 3, 0.8, "two")
