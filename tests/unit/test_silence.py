# SPDX-License-Identifier: Apache-2.0
"""Who is silent for want of a processor has not hung."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lipsync_fast.supervisor.silence import MOST, Silence, waited_s


def test_who_is_stuck_is_silent() -> None:
    silence = Silence()
    assert silence.of(10.0, 3.0, 10.5) == 0.5
    assert silence.of(10.0, 3.0, 12.5) == 2.5, "stopped, or waiting for a lock"


def test_who_waits_for_a_processor_is_excused_for_a_while() -> None:
    silence = Silence()
    assert silence.of(10.0, 3.0, 10.25) == 0.25
    assert silence.of(10.0, 5.7, 13.0) == pytest.approx(0.6), "2.7 s of these it stood in line"
    assert silence.of(10.0, 12.9, 20.0) == pytest.approx(10 / MOST), "but not for ever"
    assert silence.of(20.5, 13.0, 21.0) == 0.5, "it was heard"
    assert silence.of(20.5, 13.0, 23.0) == 2.5, "what it waited before counts no more"


def test_threads_that_end_take_nothing_away() -> None:
    silence = Silence()
    assert silence.of(10.0, 3.0, 10.5) == 0.5
    assert silence.of(10.0, 1.0, 12.5) == 2.5, "a thread ended, and with it what it had waited"


def test_who_waits_for_a_thread_that_waits_for_a_processor_is_excused(tmp_path: Path) -> None:
    def have_waited(**seconds: float) -> None:
        for thread, waited in seconds.items():
            task = tmp_path / "7" / "task" / thread[1:]
            task.mkdir(parents=True, exist_ok=True)
            (task / "schedstat").write_text(f"1000 {round(waited * 1e9)} 3\n")

    silence = Silence()
    have_waited(_7=1.0, _8=2.0, _9=0.0)
    assert silence.of(10.0, waited_s(7, tmp_path), 10.25) == 0.25
    have_waited(_7=1.0, _8=4.5, _9=0.25)
    assert silence.of(10.0, waited_s(7, tmp_path), 13.0) == pytest.approx(0.6), "in line: a worker"


def test_what_the_kernel_counts_is_read() -> None:
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    assert waited_s(os.getpid()) > 0 or not Path("/proc/self/schedstat").exists()
    assert waited_s(1 << 30) == 0.0
