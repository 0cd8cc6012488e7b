# SPDX-License-Identifier: Apache-2.0
"""Utterances that their clients never end, in simulated time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from test_live import MANIFEST, MS, World

from lipsync_fast.config import Live
from lipsync_fast.frontend.playout.burst import BurstPlayout
from lipsync_fast.frontend.playout.playout import Appearance, Ended, Picture
from lipsync_fast.frontend.playout.quiet import QuietTime
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Look, Status

QUIET_NS = int(Live().quiet_s * 1e9)


class Speaker(World):
    """A session whose quiet is looked at every 100 ms."""

    def wait(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let time pass; the utterance is ended where it has been quiet for too long."""
        quiet = self.__dict__.setdefault("quiet", QuietTime(QUIET_NS))
        for _ in range(round(seconds * 10)):
            meanwhile()
            self.run(100)
            if quiet.is_over(self.session, self.now):
                self.session.end_utterance(self.now, quiet=True)

    def ends(self) -> list[tuple[int, Ended]]:
        return [(t, e) for t, e in self.log if isinstance(e, Ended)]


def test_two_bytes_hold_no_place() -> None:
    world = Speaker()
    world.session.push_audio(np.zeros(1, np.float32), world.now)
    begun = world.now
    world.wait(6)
    [(at, ended)] = world.ends()
    assert ended == Ended(1, 1, 0, quiet=True)
    assert QUIET_NS <= at - begun <= QUIET_NS + 1500 * MS
    assert not world.session.speaking


def test_what_is_decided_is_shown_first_and_the_rest_then() -> None:
    """All that was sent is shown, though its client has forgotten the end."""
    world = Speaker()
    world.session.push_audio(np.zeros(16_000 * 5, np.float32), world.now)
    world.wait(5.5)
    assert world.ends() == [], "sound that waits is no quiet"
    shown = len(world.spoken())
    assert shown >= 115
    world.wait(5)
    [(_, ended)] = world.ends()
    assert ended == Ended(1, 125, 0, quiet=True)
    assert [s.frame for _, _, s in world.spoken()] == list(range(125))


def test_pauses_between_pieces_of_speech_do_not_end_it() -> None:
    world = Speaker()
    for _ in range(4):
        world.session.push_audio(np.zeros(16_000, np.float32), world.now)
        world.wait(1.0 + QUIET_NS / 1e9 - 0.5)
    assert world.ends() == []
    world.session.end_utterance(world.now)
    world.wait(2)
    assert [e for _, e in world.ends()] == [Ended(1, 100, 0)]


def test_a_sample_now_and_then_is_no_speech() -> None:
    world = Speaker()
    world.session.push_audio(np.zeros(640, np.float32), world.now)
    world.wait(8, lambda: (world.session.open and world.session.push_audio(
        np.zeros(1, np.float32), world.now), None)[1])  # fmt: skip
    assert world.ends()


@pytest.mark.parametrize("answered", [True, False])
def test_a_burst_is_quiet_once_its_frames_were_sent(answered: bool) -> None:
    burst = BurstPlayout(
        number=1,
        appearance=Appearance(MANIFEST, "x", Look()),
        new_stream=itertools.count(1).__next__,
    )
    quiet, now = QuietTime(QUIET_NS), 0
    burst.push_audio(np.zeros(16_000, np.float32), now)
    log = []
    while now < 2 * QUIET_NS and burst.open:
        now += 100 * MS
        while answered and burst.jobs:
            job, _ = burst.jobs.popleft()
            done = Answer(job.session, job.epoch, job.number, Status.MADE, Rect(0, 0, 1, 1))
            burst.answered(done, b"x")
        log += burst.tick(now)
        if quiet.is_over(burst, now):
            burst.end_utterance(now, quiet=True)
    assert burst.open is not answered, "frames that are owed are waited for"
    if answered:
        assert now <= QUIET_NS + 300 * MS
        while burst.jobs:
            job, _ = burst.jobs.popleft()
            done = Answer(job.session, job.epoch, job.number, Status.MADE, Rect(0, 0, 1, 1))
            burst.answered(done, b"x")
        log += burst.tick(now)
        assert log[-1] == Ended(1, 25, 0, quiet=True)
        assert len([e for e in log if isinstance(e, Picture)]) == 25
