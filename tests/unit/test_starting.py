# SPDX-License-Identifier: Apache-2.0
"""Which starts are given up: those that stand still, not those that are slow."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from lipsync_fast.supervisor.starting import (
    DOUBLINGS,
    MOST_CPU_S,
    STILL_S,
    StartWatch,
    Used,
    used_by,
)


def given_up(watch: StartWatch, cpu_per_s: float, faults_per_s: float, seconds: int) -> int | None:
    """When a start is given up that uses so much; None where it is not."""
    for second in range(seconds):
        used = Used(cpu_per_s * second, int(faults_per_s * second))
        if watch.look(used, float(second)) is not None:
            return second
    return None


def test_one_that_does_nothing_is_given_up() -> None:
    assert given_up(StartWatch(0, 0.0), 0.0, 0.0, 1000) == STILL_S + 1
    assert given_up(StartWatch(0, 0.0), 0.0005, 0.0, 1000) == STILL_S + 1, "a timer is no work"


def test_one_that_gets_a_hundredth_of_a_processor_is_not() -> None:
    """As the lowest priority gets beside two programs that compute."""
    assert given_up(StartWatch(0, 0.0), 0.01, 0.0, 1000) is None


def test_one_that_waits_for_a_disk_is_not() -> None:
    assert given_up(StartWatch(0, 0.0), 0.0, 20.0, 1000) is None


def test_one_that_says_something_is_not() -> None:
    watch = StartWatch(0, 0.0)
    for second in range(0, 1000, 10):
        watch.did_something(float(second))
        assert watch.look(Used(), second + 9.0) is None


def test_successors_are_given_longer_each_time() -> None:
    ends = [given_up(StartWatch(failures, 0.0), 0.0, 0.0, 2000) for failures in range(7)]
    assert ends == [STILL_S * 2 ** min(k, DOUBLINGS) + 1 for k in range(7)]


def test_one_that_goes_in_circles_is_given_up_in_the_end() -> None:
    reason = StartWatch(0, 0.0).look(Used(MOST_CPU_S + 1), 1e6)
    assert reason == f"not ready after {MOST_CPU_S:g} s of processor time"


def test_what_a_process_uses_is_read() -> None:
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)  # type: ignore[call-overload]
    try:
        process.stdout.readline()
        assert 0.3 < used_by(process.pid).cpu_s < 30
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert used_by(process.pid) == Used()
    assert used_by(os.getpid()).cpu_s <= time.process_time() + 0.1
