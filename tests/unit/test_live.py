# SPDX-License-Identifier: Apache-2.0
"""The live session's clock, in simulated time, with an engine that takes its time.

An answer's JPEG is the job's own description, so that every picture tells whose sound it shows.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from heapq import heappop, heappush

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import small_manifest

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.frontend.engines.latency_estimate import LatencyEstimate, urgent_before
from lipsync_fast.frontend.playout.live import LivePlayout
from lipsync_fast.frontend.playout.plan import GRACE_NS, HOLD_NS, MARGIN_NS, LiveSettings
from lipsync_fast.frontend.playout.playout import Appearance, Ended, Event, Flag, Picture, Started
from lipsync_fast.frontend.playout.slots import BEAT_NS
from lipsync_fast.frontend.session.driver import SLACK_NS
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Job, Look, Speech, Status
from lipsync_fast.timing import SLOT_NS
from lipsync_fast.utterances.transitions import LEAD, LEAD_OUT

MS = 1_000_000
MANIFEST = small_manifest((640, 480), 7, name="x", audio=AudioWindow(14, 2))


@dataclass
class World:
    """A session, its engine and its client, in simulated time."""

    delay_ns: int = 15 * MS
    own_ready: bool = True
    idle: bool = True
    now: int = 5_000 * MS
    log: list[tuple[int, Event]] = field(default_factory=list)
    margin_ns: int = MARGIN_NS
    stride: int = 1
    seen: bool = True

    def __post_init__(self) -> None:
        settings = LiveSettings(
            number=1,
            new_stream=itertools.count(1).__next__,
            own_ready=lambda: self.own_ready,
            idle=self.idle,
            margin_ns=lambda: self.margin_ns,
            stride=lambda: self.stride,
            pictures=lambda: self.seen,
        )
        self.session = LivePlayout(settings, Appearance(MANIFEST, "x", Look()), self.now)
        self.begun = self.now - self.now % BEAT_NS
        self.working: list[tuple[int, int, Job]] = []
        self.order = itertools.count()
        self.fails = False
        self.lose_ns = 0
        """How long after they were sent jobs go to another engine, since theirs has died."""
        self.lost = 0

    def engine(self) -> None:
        while self.session.jobs:
            job, _ = self.session.jobs.popleft()
            assert job.deadline_ns >= self.now, "asked for what is already late"
            done = self.now + self.delay_ns
            if self.lose_ns:
                again = self.session.lost(job, self.now)
                assert again is not None
                job, done = again, done + self.lose_ns
                self.lost += 1
            heappush(self.working, (done, next(self.order), job))

    def run(self, milliseconds: float) -> None:
        """Let time pass, in steps of 1 ms."""
        until = self.now + int(milliseconds * MS)
        while self.now < until:
            self.now += MS
            self.engine()
            while self.working and self.working[0][0] <= self.now:
                _, _, job = heappop(self.working)
                status = Status.FAILED if self.fails else Status.MADE
                answer = Answer(job.session, job.epoch, job.number, status, Rect(0, 0, 640, 480))
                self.session.answered(answer, msgspec.msgpack.encode(job))
            self.log += [(self.now, e) for e in self.session.tick(self.now)]
            self.engine()

    def say(self, seconds: float, piece_ms: int = 20, speed: float = 1.0) -> None:
        """Speak in pieces as they are recorded; then the end."""
        for _ in range(round(seconds * 1000 / piece_ms)):
            self.run(piece_ms / speed)
            self.session.push_audio(np.zeros(16 * piece_ms, np.float32), self.now)
        self.session.end_utterance(self.now)

    def pictures(self) -> list[tuple[int, Picture]]:
        return [(t, e) for t, e in self.log if isinstance(e, Picture)]

    def spoken(self) -> list[tuple[int, Picture, Speech]]:
        """Frames of utterances that were shown, and what they show."""
        out = []
        for t, picture in self.pictures():
            if picture.utterance and not picture.flags & Flag.REPEATED and not picture.unseen:
                assert picture.jpeg is not None
                job = msgspec.msgpack.decode(picture.jpeg, type=Job)
                assert job.speech is not None
                assert job.avatar_frame == picture.avatar_frame
                out.append((t, picture, job.speech))
        return out


def check_clock(world: World) -> None:
    """Every slot once, in order, in time, over the avatar's own loop."""
    shown = world.pictures()
    assert [p.number for _, p in shown] == list(range(len(shown)))
    for t, picture in shown:
        assert 0 <= t - (world.begun + picture.pts_ns) <= GRACE_NS + 2 * MS
        if not picture.flags & Flag.REPEATED:
            assert picture.avatar_frame == MANIFEST.avatar_frame(picture.number)
    times = [p.pts_ns for _, p in shown]
    assert all(SLOT_NS <= b - a < 2 * SLOT_NS for a, b in itertools.pairwise(times))


def test_idle_shows_the_avatars_loop() -> None:
    world = World()
    world.run(1_000)
    check_clock(world)
    assert len(world.pictures()) == 26
    assert all(p.flags == Flag.IDLE and p.jpeg is None for _, p in world.pictures())


@pytest.mark.parametrize("own_ready", [True, False])
def test_pictures_of_rest_are_left_out_and_speech_is_not(own_ready: bool) -> None:
    world = World(own_ready=own_ready, stride=4)
    world.run(1_000)
    assert [p.number for _, p in world.pictures()] == list(range(0, 28, 4))[: len(world.pictures())]
    assert len(world.pictures()) in (6, 7)
    world.say(3.0)
    world.run(2_000)
    spoken = world.spoken()
    assert [s.frame for _, _, s in spoken] == list(range(75))
    slots = [p.number for _, p, _ in spoken]
    assert slots == list(range(slots[0], slots[0] + 75))
    assert world.session.late == 0
    for t, picture in world.pictures():
        assert 0 <= t - (world.begun + picture.pts_ns) <= GRACE_NS + 2 * MS
        assert picture.number % 4 == 0 or slots[0] - LEAD <= picture.number <= slots[-1] + LEAD_OUT
    assert not any(p.flags & Flag.REPEATED for _, p in world.pictures()[1:])


def test_sessions_that_rest_share_their_moments() -> None:
    """Whenever they began, and whatever they have said."""
    moments = set()
    for begin in (5_000, 5_003, 5_017, 5_038):
        world = World(now=begin * MS)
        world.run(200)
        world.say(0.5)
        world.run(3_000)
        moments |= {t % BEAT_NS for t, p in world.pictures()[-10:] if p.flags == Flag.IDLE}
        check_clock(world)
    assert moments == {0}


@pytest.mark.parametrize("speed", [1.0, 1.7, 50.0])
def test_every_frame_of_an_utterance_is_shown_once_in_step(speed: float) -> None:
    world = World()
    world.run(333)
    world.say(3.0, speed=speed)
    world.run(4_000)
    check_clock(world)
    spoken = world.spoken()
    assert [s.frame for _, _, s in spoken] == list(range(75))
    slots = [p.number for _, p, _ in spoken]
    assert slots == list(range(slots[0], slots[0] + 75))
    assert [e for _, e in world.log if not isinstance(e, Picture)] == [Started(1), Ended(1, 75, 0)]
    assert spoken[0][1].flags == Flag.FIRST
    assert spoken[-1][1].flags == Flag.LAST
    assert world.session.late == 0
    assert not world.session.speaking


def test_latency_is_what_the_session_says() -> None:
    """A sound's picture comes look-ahead and margin after it, to a piece's length."""
    world = World()
    world.run(333)
    heard = world.now
    world.say(2.0)
    first, _, _ = world.spoken()[0]
    assert abs((first - heard) / MS - world.session.latency_ms) <= 21
    needed = MANIFEST.audio.lookahead_samples / 16 * MS
    assert first - heard - needed <= MARGIN_NS + 21 * MS


def test_the_mouth_is_drawn_in_and_out() -> None:
    world = World()
    world.run(200)
    world.say(1.0)
    world.run(2_000)
    shares = []
    for _, picture in world.pictures():
        if picture.jpeg is not None:
            speech = msgspec.msgpack.decode(picture.jpeg, type=Job).speech
            assert speech is not None
            shares.append(speech.share)
    assert len(shares) == 25 + LEAD + LEAD_OUT
    assert shares[: LEAD + 1] == [0.25, 0.5, 0.75, 1.0]
    way_out = [1 - k / (LEAD_OUT + 1) for k in range(LEAD_OUT + 1)]
    assert shares[-LEAD_OUT - 1 :] == pytest.approx(way_out)


def test_a_pause_in_the_sound() -> None:
    """Pieces of one utterance with 700 ms of nothing in between."""
    world = World()
    world.run(200)
    for pause in (700, 400, 0):
        for _ in range(50):
            world.run(20)
            world.session.push_audio(np.zeros(320, np.float32), world.now)
        world.run(pause)
    world.session.end_utterance(world.now)
    world.run(2_000)
    check_clock(world)
    spoken = world.spoken()
    assert [s.frame for _, _, s in spoken] == list(range(75))
    assert world.session.late == 0
    gaps = [b[1].number - a[1].number for a, b in itertools.pairwise(spoken)]
    assert sum(gap > 1 for gap in gaps) == 2, "two under-runs, and in step otherwise"
    rests = [
        p
        for _, p in world.pictures()
        if spoken[0][1].number < p.number < spoken[-1][1].number and not p.utterance
    ]
    assert any(p.jpeg is None for p in rests), "in the long pause the avatar's own mouth is reached"
    ended = [e for _, e in world.log if isinstance(e, Ended)]
    assert ended == [Ended(1, 75, 0)]


def test_late_frames_are_skipped_and_the_rest_stays_in_step() -> None:
    world = World()
    world.run(200)
    world.say(1.0)
    world.delay_ns = 150 * MS
    world.session.push_audio(np.zeros(16_000, np.float32), world.now)
    world.run(500)
    world.delay_ns = 10 * MS
    world.session.end_utterance(world.now)
    world.run(2_500)
    check_clock(world)
    ended = [e for _, e in world.log if isinstance(e, Ended)]
    assert [e.utterance for e in ended] == [1, 2]
    shown = [s.frame for _, p, s in world.spoken() if p.utterance == 2]
    assert ended[1].frames == 25
    assert ended[1].dropped == 25 - len(shown) == world.session.late - ended[0].dropped
    assert shown == sorted(set(shown))
    starts = {p.number - s.frame for _, p, s in world.spoken() if p.utterance == 2}
    assert len(starts) == 1, "a frame keeps its slot whatever was dropped before it"


def test_interruption_silences_at_once() -> None:
    world = World()
    world.run(200)
    world.say(2.0, speed=4.0)
    world.run(300)
    assert world.spoken()
    world.log.clear()
    at = world.now
    last = world.session.interrupt(world.now)
    world.run(1_000)
    assert not world.spoken()
    assert not world.session.speaking
    first, picture = world.pictures()[0]
    assert picture.number == last + 1
    assert picture.flags & Flag.IDLE
    assert first - at <= 41 * MS
    assert world.pictures()[-1][1].jpeg is None
    world.say(0.5)
    world.run(1_000)
    assert [s.frame for _, _, s in world.spoken()] == list(range(13))


def test_answers_to_an_interrupted_utterance_are_dropped() -> None:
    world = World(delay_ns=200 * MS)
    world.run(200)
    world.say(1.0, speed=4.0)
    world.session.interrupt(world.now)
    world.run(1_000)
    assert not world.spoken()


def test_utterances_follow_each_other() -> None:
    world = World()
    world.say(0.5, speed=10.0)
    world.say(0.3, speed=10.0)
    world.say(0.04)
    world.run(3_000)
    check_clock(world)
    spoken = world.spoken()
    assert [(p.utterance, s.frame) for _, p, s in spoken] == (
        [(1, k) for k in range(13)] + [(2, k) for k in range(8)] + [(3, 0)]
    )
    assert spoken[-1][1].flags == Flag.FIRST | Flag.LAST


def test_without_idle_nothing_is_shown_between() -> None:
    world = World(idle=False)
    world.run(500)
    world.say(1.0)
    world.run(1_000)
    assert [p.utterance for _, p in world.pictures()] == [1] * 25


def test_own_pictures_in_another_look_are_asked_for() -> None:
    world = World(own_ready=False)
    world.run(1_000)
    check_clock(world)
    late = [p for _, p in world.pictures() if p.jpeg is None]
    assert len(late) <= 1, "only the very first could not be there"


def test_failed_frames_are_dropped() -> None:
    world = World()
    world.fails = True
    world.say(0.4)
    world.run(1_000)
    check_clock(world)
    assert [e for _, e in world.log if isinstance(e, Ended)] == [Ended(1, 10, 10)]
    assert not world.session.speaking


def test_a_front_that_stood_still_goes_on_in_the_present() -> None:
    world = World()
    world.run(100)
    world.session.push_audio(np.zeros(16_000 * 3, np.float32), world.now)
    world.session.end_utterance(world.now)
    world.engine()
    world.now += 10_000 * MS
    world.run(6_000)
    shown = world.pictures()
    assert [p.number for _, p in shown] == sorted({p.number for _, p in shown})
    ended = [e for _, e in world.log if isinstance(e, Ended)]
    assert [e.frames for e in ended] == [75]
    assert abs(shown[-1][0] - (world.begun + shown[-1][1].pts_ns)) <= 2 * MS


def test_queued_sound_is_told() -> None:
    world = World()
    world.session.push_audio(np.zeros(16_000 * 20, np.float32), world.now)
    assert world.session.queued_s > 19
    world.run(10_000)
    assert 9 < world.session.queued_s < 11


@pytest.mark.slow
def test_an_hour_has_no_drift() -> None:
    """Slots are counted, never added up from what the timer gave."""
    world = World()
    due = world.session.wake_ns
    for hour_ms in range(0, 3_600_000, 37):
        world.session.tick(world.begun + hour_ms * MS)
    assert (world.session.wake_ns - due) == (3_600_000 * MS // SLOT_NS) * SLOT_NS


def test_frames_of_a_lost_engine_are_waited_for() -> None:
    """Jobs whose engine died come late from another one: all are shown, in order, and soon."""
    world = World()
    world.run(200)
    world.say(1.0)
    world.run(1_500)
    world.log.clear()
    world.lose_ns = 200 * MS
    world.say(0.4)
    lost = world.lost
    world.lose_ns = 0
    world.run(2_000)
    assert lost, "the engine died with jobs in it"
    spoken = world.spoken()
    assert [s.frame for _, _, s in spoken] == list(range(10))
    assert world.session.late == 0
    times = [t for t, _ in world.pictures()]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 300 * MS
    assert [p.number for _, p in world.pictures()] == list(
        range(world.pictures()[0][1].number, world.pictures()[-1][1].number + 1)
    )


def test_slow_engines_are_given_more_time() -> None:
    """Three frames are late, then all slots move back by what is missing, and none is late."""
    world = World(delay_ns=130 * MS)
    world.run(200)
    world.margin_ns = 150 * MS
    world.session._plan.margin_ns = MARGIN_NS
    for _ in range(60):
        world.run(20)
        world.session.push_audio(np.zeros(320, np.float32), world.now)
        if world.session.late < 3:
            world.session._plan.margin_ns = MARGIN_NS
    world.session.end_utterance(world.now)
    world.run(2_000)
    (ended,) = [e for _, e in world.log if isinstance(e, Ended)]
    assert ended.frames == 30
    assert ended.dropped <= 3
    world.say(1.0)
    world.run(2_000)
    assert [e for _, e in world.log if isinstance(e, Ended)][1] == Ended(2, 25, 0)


def test_a_lost_engine_is_not_waited_for_forever() -> None:
    world = World()
    world.run(200)
    world.lose_ns = 10_000 * MS
    world.say(0.4)
    world.run(3_000)
    assert [e for _, e in world.log if isinstance(e, Ended)] == [Ended(1, 10, 10)]
    times = [t for t, _ in world.pictures()]
    assert max(b - a for a, b in itertools.pairwise(times)) <= HOLD_NS + 100 * MS


def test_another_avatar_comes_when_nothing_is_spoken() -> None:
    world = World()
    world.run(100)
    other = msgspec.structs.replace(MANIFEST, name="y", frame_count=3)
    world.say(0.4, speed=10.0)
    world.session.change(Appearance(other, "y", Look(quality=50)))
    world.run(300)
    assert world.session.avatar == "x"
    world.run(1_000)
    assert world.session.avatar == "y"
    assert max(p.avatar_frame for _, p in world.pictures()[-8:]) == 2
    assert len(world.spoken()) == 10


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_happens_the_clock_holds(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    world = World(delay_ns=rng.choice([1, 20, 45, 130]) * MS, own_ready=rng.random() < 0.7)
    for _ in range(rng.randint(1, 25)):
        what = rng.random()
        if what < 0.6:
            size = rng.choice([1, 100, 640, 3000, 20_000])
            world.session.push_audio(np.zeros(size, np.float32), world.now)
        elif what < 0.75:
            world.session.end_utterance(world.now)
        elif what < 0.82:
            world.session.interrupt(world.now)
        elif what < 0.87:
            world.fails = not world.fails
        world.run(rng.choice([0, 3, 20, 40, 250]))
    world.session.end_utterance(world.now)
    world.run(1_000 + 1_000 * world.session.queued_s)
    world.run(1_500)
    check_clock(world)
    started = [e.utterance for _, e in world.log if isinstance(e, Started)]
    assert started == sorted(set(started))
    assert not world.session.speaking
    assert len(world.session._plan.by_job) <= 8


class Measured(World):
    """A world whose margin follows from how long urgent frames take, as in a front."""

    latency = LatencyEstimate()

    def engine(self) -> None:
        before = urgent_before(self.now, self.margin_ns, self.session.margin_ns, SLACK_NS)
        for job, _ in self.session.jobs:
            if job.deadline_ns < before:
                self.latency.took(self.delay_ns)
        self.margin_ns = self.latency.margin_ns(MARGIN_NS / MS, 400)
        super().engine()


def test_when_engines_are_fast_again_pictures_come_sooner_again() -> None:
    world = Measured()
    world.latency = LatencyEstimate()
    world.latency.took(950 * MS)
    world.engine()
    assert world.margin_ns == 249_500_000
    margins = []
    for _ in range(5):
        world.say(4.0)
        world.run(1_500)
        margins.append(world.session.margin_ns)
    assert margins[0] == 249_500_000
    assert margins[1] < 180 * MS
    assert margins[2] < 120 * MS
    assert margins[4] == MARGIN_NS
    assert world.session.late == 0


def test_a_slow_frame_is_believed_at_once_and_a_fast_one_slowly() -> None:
    latency = LatencyEstimate()
    for _ in range(100):
        latency.took(20 * MS)
    assert 19 * MS < latency.ns < 21 * MS
    latency.took(60 * MS)
    assert latency.ns > 29 * MS
    latency.took(20 * MS)
    assert latency.ns > 29 * MS
    latency.took(60 * MS, skipped=True)
    assert latency.ns > 50 * MS
    for _ in range(1000):
        latency.took(20 * MS)
    assert 19 * MS < latency.ns < 21 * MS
    assert latency.margin_ns(66, 400) == 66 * MS


@pytest.mark.parametrize("own_ready", [True, False])
def test_pictures_that_nobody_sees_are_asked_of_nobody_and_come_back_in_step(
    own_ready: bool,
) -> None:
    world, asked = World(own_ready=own_ready), list[tuple[int, Job]]()
    send = world.engine

    def engine() -> None:
        asked.extend((world.now, job) for job, _ in world.session.jobs)
        send()

    world.engine = engine  # type: ignore[method-assign]
    for piece in range(200):  # 4 s
        if piece == 70:
            world.seen, off = False, world.now
        if piece == 140:
            world.seen, on = True, world.now
            world.session.tick(world.now)
        world.run(20)
        world.session.push_audio(np.zeros(320, np.float32), world.now)
    world.session.end_utterance(world.now)
    world.run(2_000)
    assert [t for t, _ in asked if off < t < on] == [], "jobs while nobody looks"
    # Every frame has its slot, as if nothing had been; those behind the gap show their own sound.
    frames = [p for _, p in world.pictures() if p.frame is not None]
    assert [p.frame for p in frames] == list(range(100))
    assert [p.number for p in frames] == list(range(frames[0].number, frames[0].number + 100))
    assert all(not p.flags & Flag.REPEATED for p in frames)
    assert {s.frame: p.frame for _, p, s in world.spoken()} == {
        p.frame: p.frame for p in frames if not p.unseen
    }
    back = next(t for t, p in world.pictures() if t > on and p.jpeg is not None)
    assert back <= on + 2 * SLOT_NS + GRACE_NS, "and at once"
    assert not any(p.unseen for t, p in world.pictures() if not off <= t <= on + 2 * SLOT_NS)
    ended = [e for _, e in world.log if isinstance(e, Ended)]
    assert ended == [Ended(1, 100, 0)]
    assert world.session.late == 0


def test_rest_and_ways_in_and_out_that_nobody_sees_cost_nothing() -> None:
    world = World(own_ready=False)
    world.seen = False
    world.run(500)
    world.say(2.0)
    world.run(1_000)
    assert not world.working
    assert not world.session.jobs
    assert [type(e) for _, e in world.log if not isinstance(e, Picture)] == [Started, Ended]
    world.seen = True
    begun = world.now
    world.run(200)
    shown = [p for t, p in world.pictures() if t > begun + SLOT_NS and p.jpeg is not None]
    assert shown, "the avatar's own pictures are asked for again"
    assert all(p.flags == Flag.IDLE for p in shown)
