# SPDX-License-Identifier: Apache-2.0
"""The burst pace: all frames, in order, as they are made."""

from __future__ import annotations

import itertools
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import small_manifest

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.frontend.playout.burst import GIVE_UP_NS, IN_FLIGHT, BurstPlayout
from lipsync_fast.frontend.playout.playout import Appearance, Ended, Event, Flag, Picture, Started
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Job, Look, Status

MANIFEST = small_manifest((640, 480), 7, name="x", audio=AudioWindow(8, 8))


def session() -> BurstPlayout:
    return BurstPlayout(
        number=1,
        appearance=Appearance(MANIFEST, "x", Look()),
        new_stream=itertools.count(1).__next__,
    )


def answer(job: Job, status: Status = Status.MADE) -> Answer:
    return Answer(job.session, job.epoch, job.number, status, Rect(0, 0, 640, 480))


def say(burst: BurstPlayout, seconds: float) -> None:
    burst.push_audio(np.zeros(int(16_000 * seconds), np.float32), 0)
    burst.end_utterance(0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_every_frame_once_in_order(seed: int) -> None:
    """Whatever the order of the answers and the cut of the sound."""
    rng, burst = random.Random(seed), session()
    working: list[Job] = []
    log: list[Event] = []
    expected = []
    for utterance in range(1, 4):
        samples = rng.randint(1, 60_000)
        expected += [(utterance, k) for k in range(-(-samples // 640))]
        while samples:
            piece = min(samples, rng.randint(1, 9_000))
            burst.push_audio(np.zeros(piece, np.float32), 0)
            samples -= piece
        burst.end_utterance(0)
    while burst.speaking:
        while burst.jobs:
            working.append(burst.jobs.popleft()[0])
        assert len(working) <= IN_FLIGHT
        rng.shuffle(working)
        job = working.pop()
        if rng.random() < 0.1:
            again = burst.lost(job, 5)
            assert again is not None
            working.append(again)
            continue
        burst.answered(answer(job), b"%d" % job.number)
        log += burst.tick(0)
    shown = [e for e in log if isinstance(e, Picture)]
    assert [(p.utterance, p.frame) for p in shown] == expected
    assert [p.number for p in shown] == list(range(len(expected)))
    assert [p.avatar_frame for p in shown] == [
        MANIFEST.avatar_frame(k) for k in range(len(expected))
    ]
    ends = [e for e in log if not isinstance(e, Picture)]
    assert [e.utterance for e in ends] == [1, 1, 2, 2, 3, 3]
    assert all(isinstance(e, Started) for e in ends[::2])
    assert all(isinstance(e, Ended) and not e.dropped for e in ends[1::2])
    assert burst.queued_s == 0


def test_failed_frames_are_told() -> None:
    burst = session()
    say(burst, 0.2)
    for k, (job, _) in enumerate(list(burst.jobs)):
        burst.answered(answer(job, Status.FAILED if k == 1 else Status.MADE), b"x")
    log = burst.tick(0)
    assert [p.frame for p in log if isinstance(p, Picture)] == [0, 2, 3, 4]
    assert log[-1] == Ended(1, 5, 1)


def test_frames_that_engines_had_no_time_for_are_asked_for_again() -> None:
    """As often as it takes: nothing is missing at the end, and nothing out of order."""
    burst, rng, log, now = session(), random.Random(3), list[Event](), 0
    say(burst, 4.0)
    asked = 0
    while burst.speaking:
        now += 30 * 10**9
        jobs = [burst.jobs.popleft() for _ in range(len(burst.jobs))]
        assert jobs, "it waits for nothing"
        asked += len(jobs)
        for job, samples in jobs:
            assert job.deadline_ns > now - 30 * 10**9
            assert len(samples) > 0
            skipped = rng.random() < 0.7
            burst.answered(answer(job, Status.SKIPPED if skipped else Status.MADE), b"x")
        log += burst.tick(now)
    assert asked > 200
    assert [p.frame for p in log if isinstance(p, Picture)] == list(range(100))
    assert log[-1] == Ended(1, 100, 0)
    assert burst.late == 0


def test_frames_are_given_up_where_no_engine_answers_at_all() -> None:
    burst = session()
    say(burst, 0.2)
    wake = burst.wake_ns
    assert wake == GIVE_UP_NS
    assert burst.tick(wake - 1) == []
    jobs = [job for job, _ in burst.jobs]
    burst.jobs.clear()
    assert burst.tick(wake)[-1] == Ended(1, 5, 5)
    assert burst.lost(jobs[0], wake) is None
    assert not burst.answered(answer(jobs[1]), b"x")


def test_an_interruption_forgets_what_was_to_be_asked_for_again() -> None:
    burst = session()
    say(burst, 0.2)
    job, _ = burst.jobs.popleft()
    burst.answered(answer(job, Status.SKIPPED), b"")
    burst.interrupt(0)
    assert burst.tick(1) == []
    assert not burst.jobs


def test_interrupted_frames_never_come() -> None:
    burst = session()
    say(burst, 1.0)
    old = [job for job, _ in burst.jobs]
    burst.answered(answer(old[0]), b"x")
    assert [e.frame for e in burst.tick(0) if isinstance(e, Picture)] == [0]
    assert burst.interrupt(0) == 0
    assert not burst.jobs
    assert not burst.answered(answer(old[1]), b"x")
    assert burst.tick(0) == []
    assert burst.lost(old[2], 0) is None
    say(burst, 0.04)
    burst.answered(answer(burst.jobs.popleft()[0]), b"y")
    picture = burst.tick(0)[1]
    assert isinstance(picture, Picture)
    assert (picture.number, picture.utterance, picture.flags) == (1, 2, Flag.FIRST | Flag.LAST)


def test_another_avatar_begins_at_its_first_picture() -> None:
    burst = session()
    say(burst, 0.12)
    burst.change(Appearance(MANIFEST, "y", Look()))
    jobs = [job for job, _ in burst.jobs]
    burst.jobs.clear()
    assert {job.avatar for job in jobs} == {"x"}
    for job in jobs:
        burst.answered(answer(job), b"x")
    burst.tick(0)
    say(burst, 0.04)
    job, _ = burst.jobs.popleft()
    assert (job.avatar, job.avatar_frame) == ("y", 0)


def test_an_utterance_without_sound_is_none() -> None:
    burst = session()
    burst.push_audio(np.zeros(0, np.float32), 0)
    burst.end_utterance(0)
    assert not burst.speaking
    assert burst.tick(0) == []
