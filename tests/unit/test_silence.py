# SPDX-License-Identifier: Apache-2.0
"""Who is silent for want of a processor has not hung."""

from __future__ import annotations

import os
import time

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


def test_what_the_kernel_counts_is_read() -> None:
    first = waited_s(os.getpid())
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    assert waited_s(os.getpid()) >= first >= 0
    assert waited_s(1 << 30) == 0.0
