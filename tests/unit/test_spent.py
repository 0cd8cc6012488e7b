# SPDX-License-Identifier: Apache-2.0
"""Processor time by what it was spent on."""

from __future__ import annotations

import threading
import time

import pytest

from lipsync_fast.engine.cpu_time import Spent


def work(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_part_within_a_part_counts_once() -> None:
    spent = Spent()
    begun = time.thread_time()
    with spent.on("outer"):
        work(0.02)
        with spent.on("inner"):
            work(0.05)
        with spent.on("inner"):
            work(0.01)
    with spent.on("inner"):
        work(0.01)
    took = time.thread_time() - begun
    found = spent.seconds
    assert found["outer"] == pytest.approx(0.02, abs=0.005)
    assert found["inner"] == pytest.approx(0.07, abs=0.005)
    assert sum(found.values()) == pytest.approx(took, abs=0.002)


def test_waiting_costs_nothing() -> None:
    spent = Spent()
    with spent.on("waiting"):
        time.sleep(0.05)
    assert spent.seconds["waiting"] < 0.02


def test_threads_add_up_and_do_not_mix() -> None:
    spent = Spent()

    def one(what: str) -> None:
        for _ in range(50):
            with spent.on("all"), spent.on(what):
                work(0.0004)

    threads = [threading.Thread(target=one, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = spent.seconds
    assert set(found) == {"all", "a", "b", "c"}
    for name in "abc":
        assert found[name] >= 50 * 0.0004
    assert found["all"] < found["a"]


def test_what_fails_is_counted_too() -> None:
    spent = Spent()

    def fail() -> None:
        with spent.on("outer"), spent.on("broken"):
            work(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with spent.on("after"):
        pass
    assert spent.seconds["broken"] >= 0.01
    assert spent.seconds["after"] < 0.005
