# SPDX-License-Identifier: Apache-2.0
"""Processor time by what it was cpu_time on."""

from __future__ import annotations

import threading
import time

import pytest

from lipsync_fast.engine.cpu_time import CpuTime


def work(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_part_within_a_part_counts_once() -> None:
    cpu_time = CpuTime()
    begun = time.thread_time()
    with cpu_time.on("outer"):
        work(0.02)
        with cpu_time.on("inner"):
            work(0.05)
        with cpu_time.on("inner"):
            work(0.01)
    with cpu_time.on("inner"):
        work(0.01)
    took = time.thread_time() - begun
    found = cpu_time.seconds
    assert found["outer"] == pytest.approx(0.02, abs=0.005)
    assert found["inner"] == pytest.approx(0.07, abs=0.005)
    assert sum(found.values()) == pytest.approx(took, abs=0.002)


def test_waiting_costs_nothing() -> None:
    cpu_time = CpuTime()
    with cpu_time.on("waiting"):
        time.sleep(0.05)
    assert cpu_time.seconds["waiting"] < 0.02


def test_threads_add_up_and_do_not_mix() -> None:
    cpu_time = CpuTime()

    def one(what: str) -> None:
        for _ in range(50):
            with cpu_time.on("all"), cpu_time.on(what):
                work(0.0004)

    threads = [threading.Thread(target=one, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = cpu_time.seconds
    assert set(found) == {"all", "a", "b", "c"}
    for name in "abc":
        assert found[name] >= 50 * 0.0004
    assert found["all"] < found["a"]


def test_what_fails_is_counted_too() -> None:
    cpu_time = CpuTime()

    def fail() -> None:
        with cpu_time.on("outer"), cpu_time.on("broken"):
            work(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with cpu_time.on("after"):
        pass
    assert cpu_time.seconds["broken"] >= 0.01
    assert cpu_time.seconds["after"] < 0.005
