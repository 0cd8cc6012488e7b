# SPDX-License-Identifier: Apache-2.0
"""A session's utterances as they are counted, one by one."""

from __future__ import annotations

import time

import pytest

from lipsync_fast.frontend.playout.playout import Ended, Flag, Picture
from lipsync_fast.frontend.session.spoken import SpokenUtterances
from lipsync_fast.frontend.statistics import FrontStatistics
from lipsync_fast.histograms import SHORT, Histogram

NONE = Flag(0)


def picture(utterance: int, frame: int | None = 0, flags: Flag = NONE) -> Picture:
    return Picture(0, 0, 0, flags, utterance, None, None, frame)


def said(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [getattr(record.msg, "fields", {}) for record in caplog.records]


def test_the_first_picture_counts_once_and_each_utterance_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "lipsync.front")
    front = FrontStatistics()
    spoken = SpokenUtterances(front, session=7, paced=True)
    spoken.on_heard(1, "anna", 320, time.monotonic_ns() - 250_000_000)
    spoken.on_sent(picture(1), 40.0)
    spoken.on_heard(2, "anna", 320, time.monotonic_ns())  # while the first is still shown
    spoken.on_sent(picture(1), 70.0)
    spoken.on_shown(picture(1, flags=Flag.REPEATED))
    spoken.on_left_out(3)
    spoken.end(Ended(1, frames=6, dropped=1))
    spoken.on_sent(picture(1), 900.0)  # a slow reader's last one: it has been told
    spoken.break_off("interrupted")
    first, second = said(caplog)
    assert first["first_ms"] == pytest.approx(250, rel=0.5)
    told = {"session": 7, "utterance": 1, "avatar": "anna", "why": "end", "pictures": 2}
    told |= {"late": 1, "skipped": 3, "dropped": 1, "slowest_ms": 70.0}
    assert first.items() >= told.items()
    told = {"utterance": 2, "why": "interrupted", "pictures": 0, "skipped": 0}
    assert second.items() >= told.items()
    assert sum(front.first_picture.counts.values()) == 1
    assert front.first_picture.sum_s >= 0.25


def test_what_has_no_moments_is_no_latency() -> None:
    front = FrontStatistics()
    spoken = SpokenUtterances(front, session=7, paced=False)
    spoken.on_heard(1, "anna", 320, time.monotonic_ns())
    spoken.on_sent(picture(1), 40.0)
    spoken.end(Ended(5, frames=0, dropped=0))  # of one that it knows nothing of
    assert not sum(front.first_picture.counts.values())


def test_a_histograms_ends_belong_to_their_buckets() -> None:
    histogram = Histogram(("0.1", "1", "+Inf"))
    for seconds in (-1.0, 0.1, 0.2, 1.0, 5.0):
        histogram.add(seconds)
    assert histogram.durations.counts == {"0.1": 2, "1": 2, "+Inf": 1}
    assert histogram.sum_s == pytest.approx(6.3)
    ends = [float(end) for end in SHORT]
    assert ends == sorted(set(ends))
