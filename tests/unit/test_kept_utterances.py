# SPDX-License-Identifier: Apache-2.0
"""Sessions that say what was said before, in simulated time, with a real store.

The engine finds and keeps frames by the real keys; a frame that it makes takes its time, one that
it finds takes next to none. A picture's bytes are the job that it was made for first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path

import msgspec
import numpy as np
import pytest
from engines import noise

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import block_starts
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.config import Utterances
from lipsync_fast.frontend.kept_utterances import KeptUtterances
from lipsync_fast.frontend.playout.burst import BurstPlayout
from lipsync_fast.frontend.playout.cached_start import CACHED_MARGIN_NS
from lipsync_fast.frontend.playout.live import LivePlayout
from lipsync_fast.frontend.playout.plan import MARGIN_NS, LiveSettings
from lipsync_fast.frontend.playout.playout import Appearance, Ended, Event, Flag, Picture
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Job, Look, Status, StoreMode
from lipsync_fast.timing import SLOT_NS
from lipsync_fast.utterances.keys import content_of, scope_of, sound_of
from lipsync_fast.utterances.likeness import period_of
from lipsync_fast.utterances.store import Row, Store
from lipsync_fast.utterances.transitions import LEAD, shown

MS = 1_000_000
SOUND = noise(1.0, seed=4)


class World:
    """A front's knowledge, an engine with its store, and one session at a time."""

    def __init__(self, package: AvatarPackage, folder: Path) -> None:
        self.package, self.now = package, 5_000 * MS
        config = Utterances(folder=str(folder), disk_mb=8)
        self.known = KeptUtterances(config, lambda: "test")
        self.known.register("x", package)
        self.store = Store(folder, 8_000_000, 1.0)
        self.made = self.found = 0
        self.blind = False
        """The engine does not find what is there."""
        self.streams = itertools.count(1)
        self.begin()

    def begin(self, idle: bool = True, look: Look | None = None, keeps: bool = True) -> None:
        settings = LiveSettings(
            number=1,
            new_stream=self.streams.__next__,
            own_ready=lambda: True,
            idle=idle,
            lookup=self.known if keeps else None,
        )
        appearance = Appearance(self.package.manifest, "x", look or Look())
        self.session = LivePlayout(settings, appearance, self.now)
        self.log: list[tuple[int, Event]] = []
        self.working: list[tuple[int, int, Answer, bytes]] = []
        self.order = itertools.count()

    def engine(self) -> None:
        while self.session.jobs:
            job, pcm = self.session.jobs.popleft()
            jpeg, kept, took = self.do(job, pcm)
            answer = Answer(1, job.epoch, job.number, Status.MADE, Rect(0, 0, 1, 1), kept=kept)
            heappush(self.working, (self.now + took, next(self.order), answer, jpeg))

    def do(self, job: Job, pcm: F32) -> tuple[bytes, bool, int]:
        """What an engine makes of a job, whether it was there, and how long that takes."""
        speech, m = job.speech, self.package.manifest
        assert speech is not None
        scope = scope_of(content_of(self.package), "test", m, job.look)
        starts = block_starts(speech.frame, m.audio, speech.samples)
        sound = sound_of(scope, starts, speech.first, pcm)
        if speech.store == StoreMode.LOOK_UP and not self.blind:
            kept = self.store.find(sound, job.avatar_frame, speech.share)
            if kept is not None:
                self.found += 1
                return kept.value, True, 1 * MS
        self.made += 1
        about = job.avatar_frame, speech.frame, speech.share, bytes(pcm.data)
        jpeg = msgspec.msgpack.encode(about)
        if speech.store:
            self.store.add([Row(sound, job.avatar_frame, speech.share, jpeg)])
        return jpeg, False, 30 * MS

    def run(self, milliseconds: float) -> None:
        until = self.now + int(milliseconds * MS)
        while self.now < until:
            self.now += MS
            self.engine()
            while self.working and self.working[0][0] <= self.now:
                _, _, answer, jpeg = heappop(self.working)
                self.session.answered(answer, jpeg)
            self.log += [(self.now, e) for e in self.session.tick(self.now)]
            self.engine()

    def say(self, pcm: F32) -> int:
        """All of a sound at once; the moment."""
        self.session.push_audio(pcm, self.now)
        self.session.end_utterance(self.now)
        return self.now

    def in_real_time(self, pcm: F32) -> None:
        for at in range(0, len(pcm), 320):
            self.run(20)
            self.session.push_audio(pcm[at : at + 320], self.now)
        self.session.end_utterance(self.now)

    def spoken(self) -> list[tuple[int, Picture]]:
        return [(t, e) for t, e in self.log if isinstance(e, Picture) and e.utterance]

    def check(self) -> None:
        """In step, in order, each over its own picture, and what it was made for."""
        pictures = [(t, e) for t, e in self.log if isinstance(e, Picture)]
        times = [p.pts_ns for _, p in pictures]
        assert all(b > a for a, b in itertools.pairwise(times))
        for _, p in pictures:
            if p.jpeg is not None and not p.flags & Flag.REPEATED:
                picture, frame, _, _ = msgspec.msgpack.decode(p.jpeg)
                assert picture == p.avatar_frame
                assert p.frame in (None, frame)

    def learn(self, pcm: F32) -> None:
        """Have a sound's frames over each place of the loop, as pre-rendering does."""
        sound = Utterance(next(self.streams), self.package.manifest.audio)
        sound.push(pcm)
        sound.end()
        assert sound.frames is not None
        index = self.package.manifest.avatar_frame
        for place in range(period_of(self.package.manifest)):
            for slot, frame, share in shown(sound.frames):
                speech, seen = sound.speech(frame, share, StoreMode.LOOK_UP)
                self.do(Job(1, 0, 0, "x", index(place + slot), 0, Look(), speech), seen)
        self.known._checked_until = 0.0  # it looks only now and then, by the real clock


@pytest.fixture(scope="module")
def package(tiny_avatar: Path) -> Iterator[AvatarPackage]:
    with AvatarPackage.open(tiny_avatar) as opened:
        yield opened


@pytest.fixture
def world(package: AvatarPackage, tmp_path: Path) -> Iterator[World]:
    made = World(package, tmp_path)
    yield made
    made.known.close()
    made.store.close()


@pytest.mark.parametrize("pause_ms", range(300, 380, 16))
def test_said_again_it_begins_at_once_and_nothing_is_made(world: World, pause_ms: int) -> None:
    world.run(200)
    world.learn(SOUND)
    for _ in range(2):
        world.begin()
        world.run(pause_ms)
        world.made = 0
        begun = world.say(SOUND)
        world.run(2_000)
        world.check()
        spoken = world.spoken()
        assert [p.frame for _, p in spoken] == list(range(25))
        assert spoken[0][0] - begun == CACHED_MARGIN_NS
        assert {b - a for (a, _), (b, _) in itertools.pairwise(spoken)} == {SLOT_NS}
        shares = [msgspec.msgpack.decode(p.jpeg)[2] for _, p in spoken if p.jpeg]
        assert shares == [0.25, 0.5, 0.75] + [1.0] * 22
        ended = [e for _, e in world.log if isinstance(e, Ended)]
        assert ended == [Ended(1, 25, 0)]
        assert world.made == 0, "the mouth's way out is kept, too"
        before = [
            p for _, p in ((t, e) for t, e in world.log if t < begun) if isinstance(p, Picture)
        ]
        assert spoken[0][1].pts_ns > before[-1].pts_ns


def test_the_first_time_is_as_ever(world: World) -> None:
    """The frames, their slots and the way in are those of a session that keeps nothing."""
    logs = []
    for keeps in (True, False):
        world.begin(keeps=keeps)
        world.run(333)
        world.in_real_time(SOUND)
        world.run(2_000)
        logs.append([(t, replace(e, job=0) if isinstance(e, Picture) else e) for t, e in world.log])
        world.now = 5_000 * MS
    assert logs[0] == logs[1]


def test_of_sound_in_real_time_only_the_work_is_saved(world: World) -> None:
    world.run(200)
    world.learn(SOUND)
    begins = []
    for keeps in (True, False):
        world.begin(keeps=keeps)
        world.run(300)
        world.made = 0
        at = world.now
        world.in_real_time(SOUND)
        world.run(2_000)
        world.check()
        begins.append(world.spoken()[0][0] - at)
        assert [p.frame for _, p in world.spoken()] == list(range(25))
        assert world.made <= LEAD if keeps else world.made > 25 + LEAD
    assert begins[0] == begins[1]


def test_what_begins_the_same_and_goes_on_otherwise_is_made_in_time(world: World) -> None:
    world.run(200)
    world.learn(SOUND)
    other = SOUND.copy()
    other[12_500:] = noise(1.0, seed=9)[12_500:]
    world.begin()
    world.run(300)
    world.made = 0
    begun = world.say(other)
    world.run(2_500)
    world.check()
    spoken = world.spoken()
    assert spoken[0][0] - begun == CACHED_MARGIN_NS
    assert [p.frame for _, p in spoken] == list(range(25))
    assert world.session.late == 0
    assert world.made >= 10
    for _, p in spoken:
        assert p.jpeg is not None
        pcm = np.frombuffer(msgspec.msgpack.decode(p.jpeg)[3], np.float32)
        assert pcm[-1] in other, "each shows the sound that was sent"


def test_frames_that_are_gone_are_late_at_first_and_then_have_their_time(world: World) -> None:
    """The store says that they are there, and the engine cannot read them."""
    world.run(200)
    world.learn(SOUND)
    world.begin()
    world.run(300)
    world.blind = True
    world.say(SOUND)
    world.run(2_500)
    world.check()
    spoken = world.spoken()
    assert [p.frame for _, p in spoken] == list(range(25))
    assert world.session.late <= 3
    assert sum(bool(p.flags & Flag.REPEATED) for _, p in spoken) <= 3


def test_where_nothing_alike_is_kept_the_loop_goes_on(world: World) -> None:
    """It does not jump; the sound is kept over this place, too, and then is there."""
    world.known._likeness_of = lambda *_: Near(world.package.manifest)  # type: ignore[assignment]
    for _ in range(2):
        world.begin()
        world.run(280)
        world.made = 0
        world.say(SOUND)
        world.run(2_500)
        world.check()
        index = world.package.manifest.avatar_frame
        assert all(
            p.avatar_frame == index(p.number) for _, p in world.log if isinstance(p, Picture)
        )
        assert len(world.spoken()) == 25
        world.run(40)
    assert world.known.counts["misses"] >= 1


class Near:
    """Only the very same place is alike: a loop that moves a lot."""

    def __init__(self, manifest: object) -> None:
        self.period = 8

    def nearest(self, place: int, others: list[int]) -> int | None:
        return place if place in others else None


def test_without_idle_movement_it_may_begin_anywhere(world: World) -> None:
    world.begin(idle=False)
    world.run(200)
    world.say(SOUND)
    world.run(2_500)
    for pause in (100, 170, 260, 390):
        world.begin(idle=False)
        world.run(pause)
        world.made = 0
        begun = world.say(SOUND)
        world.run(2_000)
        world.check()
        assert world.made == 0
        assert world.spoken()[0][0] - begun == CACHED_MARGIN_NS


def test_another_look_is_another_frame(world: World) -> None:
    world.run(200)
    world.learn(SOUND)
    world.begin(look=Look(quality=50))
    world.run(300)
    world.made = 0
    begun = world.say(SOUND)
    world.run(2_500)
    assert world.made >= 25 + LEAD
    assert world.spoken()[0][0] - begun > MARGIN_NS


def test_interrupted_in_its_middle_it_ends_and_can_be_said_again(world: World) -> None:
    world.run(200)
    world.learn(SOUND)
    world.begin()
    world.run(300)
    world.say(SOUND)
    world.run(400)
    shown = len(world.spoken())
    assert 8 < shown < 12
    world.session.interrupt(world.now)
    world.run(1_000)
    assert len(world.spoken()) == shown
    begun = world.say(SOUND)
    world.run(2_000)
    world.check()
    spoken = world.spoken()[shown:]
    assert [p.frame for _, p in spoken] == list(range(25))
    assert spoken[0][0] - begun == CACHED_MARGIN_NS


def test_one_behind_the_other(world: World) -> None:
    """The second one waits for the first one's end, and joins it without a way in."""
    world.run(200)
    world.learn(SOUND)
    world.begin()
    world.run(300)
    world.say(SOUND)
    world.session.speak(SOUND, world.now)
    world.run(4_000)
    world.check()
    spoken = world.spoken()
    assert [p.frame for _, p in spoken] == 2 * list(range(25))
    assert [e.utterance for _, e in world.log if isinstance(e, Ended)] == [1, 2]


@pytest.mark.parametrize("samples", [1, 500, 700, 3_000, 5_000])
def test_the_shortest_sounds(world: World, samples: int) -> None:
    world.run(200)
    world.learn(SOUND[:samples])
    world.begin()
    world.run(313)
    world.made = 0
    begun = world.session.speak(SOUND[:samples], world.now) and world.now
    world.run(1_500)
    world.check()
    assert world.made == 0
    assert world.spoken()[0][0] - begun == CACHED_MARGIN_NS
    assert len(world.spoken()) == -(-samples // 640)


def test_as_fast_as_it_goes_the_second_time_is_all_there(world: World) -> None:
    for second in (False, True):
        manifest = world.package.manifest
        session = BurstPlayout(
            number=1,
            appearance=Appearance(manifest, "x", Look()),
            new_stream=world.streams.__next__,
            lookup=world.known,
        )
        session.speak(SOUND, world.now)
        world.made, frames = 0, list[Picture]()
        for _ in range(40):
            while session.jobs:
                job, pcm = session.jobs.popleft()
                jpeg, kept, _ = world.do(job, pcm)
                session.answered(
                    Answer(1, 0, job.number, Status.MADE, Rect(0, 0, 1, 1), kept=kept), jpeg
                )
            frames += [e for e in session.tick(world.now) if isinstance(e, Picture)]
        assert [p.frame for p in frames] == list(range(25))
        assert world.made == (0 if second else 25)


def test_nothing_is_kept_where_only_what_was_pre_rendered_is_to_be_used(world: World) -> None:
    world.known._config = Utterances(folder=world.known._config.folder, keep=False)
    world.begin()
    world.run(300)
    world.say(SOUND)
    world.run(2_500)
    assert len(world.spoken()) == 25
    assert world.store.empty


def test_sound_that_stops_coming_closes_the_mouth_and_the_rest_is_led_in_again(
    world: World,
) -> None:
    world.run(200)
    world.learn(SOUND)
    world.begin()
    world.run(300)
    world.session.push_audio(SOUND[:13_000], world.now)
    world.run(1_500)
    shown = len(world.spoken())
    assert 8 <= shown < 25
    world.session.push_audio(SOUND[13_000:], world.now)
    world.session.end_utterance(world.now)
    world.run(2_500)
    world.check()
    assert [p.frame for _, p in world.spoken()] == list(range(25))
    shares = [msgspec.msgpack.decode(p.jpeg)[2] for _, p in world.spoken()[shown:] if p.jpeg]
    assert set(shares) == {1.0}


def test_over_no_more_than_some_places_is_a_sound_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipsync_fast.frontend.kept_utterances.MOST_POSITIONS", 1)
    for look in (Look(), Look(quality=30)):
        for _ in range(6):
            world.begin(look=look)
            world.run(280 + 40 * (_ % 5))
            world.say(SOUND)
            world.run(2_500)
            assert len(world.spoken()) == 25
    kept = world.store._connection.execute(
        "SELECT count(*) FROM frames WHERE share = 1.0 GROUP BY sound"
    ).fetchall()
    assert {count for (count,) in kept} == {1}
