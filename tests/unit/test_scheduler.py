# SPDX-License-Identifier: Apache-2.0
"""The engine's loop in one process, with real rings and a small avatar."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from engines import jobs_of, later, noise, own
from numpy.typing import NDArray
from PIL import Image

import lipsync_fast
from lipsync_fast.arrays import F32
from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends import RegionJob, create_backend
from lipsync_fast.engine.front_link import MOST_WAITING
from lipsync_fast.engine.scheduler import Scheduler
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.engine.warmup import SELDOM_S
from lipsync_fast.errors import AvatarNotFoundError, RingError
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import (
    Answer,
    Cancel,
    Content,
    Job,
    Look,
    Speech,
    Status,
    read_answer,
    try_send,
)
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter
from lipsync_fast.provenance import CREATOR_MARK, jpeg_with_xmp, xmp_packet

RECT = Rect(32, 40, 96, 96)
"""The small avatar's face: x, y, width, height."""


class Front:
    """A front's sides of the rings to an engine in this process."""

    def __init__(self, engine: Scheduler, name: str = "front-1", answers: int = 1 << 22) -> None:
        self.engine = engine
        self.handles = RingHandle.create(1 << 22, 1), RingHandle.create(answers, 1)
        self.jobs, self.answers = RingWriter(self.handles[0]), RingReader(self.handles[1])
        engine.fronts.attach(name, *(dup(handle) for handle in self.handles))
        self.got: list[tuple[Answer, bytes]] = []

    def submit(self, job: Job | Cancel, pcm: F32 | None = None) -> None:
        assert try_send(self.jobs, job, b"" if pcm is None else memoryview(pcm).cast("B"))

    def read(self) -> None:
        while (record := self.answers.next()) is not None:
            answer, payload = read_answer(record)
            self.got.append((answer, bytes(payload)))
            self.answers.release()

    def run(self, count: int) -> list[tuple[Answer, bytes]]:
        """Work until there are so many answers; returns all, and forgets them."""
        until_true(self.engine, lambda: (self.read(), len(self.got) >= count)[1])
        found, self.got = self.got, []
        return found

    def close(self) -> None:
        for handle in self.handles:
            handle.close()


def dup(handle: RingHandle) -> RingHandle:
    """As it comes over a socket."""
    return RingHandle(*(os.dup(fd) for fd in handle.fds), handle.generation)


def until_true(engine: Scheduler, done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until, "nothing happened for a minute"
        if not engine.step():
            engine.sleep(0.05)


def settle(engine: Scheduler) -> None:
    """Work until there is nothing to do."""
    while engine.step() or not engine.idle:
        engine.sleep(0.05)


@pytest.fixture
def engine(tiny_avatar: Path) -> Iterator[Scheduler]:
    made = Scheduler(create_backend("cpu", 2, live=True), FrameEncoder())
    made.registry.load("tiny", tiny_avatar)
    yield made
    made.close()


@pytest.fixture
def front(engine: Scheduler) -> Iterator[Front]:
    made = Front(engine)
    yield made
    made.close()


@pytest.fixture(scope="module")
def manifest(tiny_avatar: Path) -> Manifest:
    with AvatarPackage.open(tiny_avatar) as package:
        return package.manifest


def pixels(jpeg: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def speech_job(manifest: Manifest, number: int = 0, **more: object) -> tuple[Job, F32]:
    """One frame of a sound of its own."""
    job, pcm = jobs_of(noise(0.2), manifest.audio, manifest.avatar_frame, stream=number + 7)[1]
    return msgspec.structs.replace(job, number=number, **more), pcm


# ---------------------------------------------------------------- what comes out
@pytest.mark.parametrize("seconds", [0.001, 0.5, 1.3])
def test_frames_are_those_of_a_rendering(
    front: Front, manifest: Manifest, tiny_avatar: Path, seconds: float
) -> None:
    """Byte for byte; the sound came in pieces, the jobs are answered in any order."""
    sound = noise(seconds)
    jobs = jobs_of(sound, manifest.audio, lambda k: manifest.avatar_frame(k, 3))
    for job, pcm in jobs:
        front.submit(job, pcm)
    got = {answer.number: (answer, jpeg) for answer, jpeg in front.run(len(jobs))}
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as avatar:
        frames = list(avatar.render(sound, 16_000, start_frame=3))
    assert len(frames) == len(jobs) == len(got)
    for frame in frames:
        answer, jpeg = got[frame.index]
        assert answer.status == Status.MADE
        assert answer.box == Rect(0, 0, 160, 192)
        assert jpeg == frame.jpeg
        assert 0 < answer.taken_ns <= answer.made_ns <= time.monotonic_ns()


@pytest.mark.slow
def test_the_demo_avatar(engine: Scheduler, front: Front) -> None:
    """Frames of 720p with masks, of which the network makes a part: the same bytes as rendered."""
    path = AvatarLibrary().find("demo")
    engine.registry.load("demo", path)
    served = engine.registry.avatars["demo"]
    m = served.package.manifest
    jobs = jobs_of(noise(0.4), m.audio, m.avatar_frame, avatar="demo")
    for job, pcm in jobs:
        front.submit(job, pcm)
        square = msgspec.structs.replace(job, number=100 + job.number, look=Look(Content.REGION))
        front.submit(square, pcm)
    got = {answer.number: jpeg for answer, jpeg in front.run(2 * len(jobs))}
    with lipsync_fast.open(path, backend="cpu", threads=1) as avatar:
        for frame in avatar.render(noise(0.4), 16_000):
            assert got[frame.index] == frame.jpeg
        job, pcm = jobs[5]
        assert job.speech is not None
        block = served.audio_block("another", job.speech, pcm)
        window = avatar.backend.regions([RegionJob(avatar.loaded, job.avatar_frame, block)])[0]
        wanted = served.package.crop(job.avatar_frame)[4:-4, 4:-4].copy()
    w = m.window
    assert w is not None
    wanted[w.y : w.y + w.height, w.x : w.x + w.width] = window
    how = msgspec.structs.replace(m.jpeg, restart_interval=65_535)
    assert got[105] == jpeg_with_xmp(encode_frame(wanted, how), xmp_packet(m.synthetic))


def test_lost_in_the_middle_the_rest_is_the_same(
    front: Front, manifest: Manifest, tiny_avatar: Path
) -> None:
    """What an engine makes that takes over in the middle of a sound."""
    jobs = jobs_of(noise(1.0), manifest.audio, manifest.avatar_frame)
    front.submit(*jobs[20])
    (_, jpeg), *_ = front.run(1)
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as avatar:
        assert jpeg == list(avatar.render(noise(1.0), 16_000))[20].jpeg


def test_looks(front: Front, manifest: Manifest, tiny_avatar: Path) -> None:
    """The same frame as the whole, the mouth, the generated square, and at other qualities."""
    job, pcm = jobs_of(noise(0.4), manifest.audio, manifest.avatar_frame)[4]
    looks = [
        Look(),
        Look(Content.MOUTH),
        Look(Content.REGION),
        Look(quality=30),
        Look(quality=30),
        Look(max_width=80),
        Look(max_width=1000),
        Look(Content.MOUTH, quality=20),
    ]
    for k, look in enumerate(looks):
        front.submit(msgspec.structs.replace(job, number=k, look=look), pcm)
    got = {a.number: (a, j) for a, j in front.run(len(looks))}
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as avatar:
        frame = list(avatar.render(noise(0.4), 16_000))[4]
        block = avatar.backend.regions  # the square as the network made it
        speech = job.speech
        assert speech is not None
        served = front.engine.registry.avatars["tiny"]
        audio = served.audio_block("another", speech, pcm)
        region = block([RegionJob(avatar.loaded, job.avatar_frame, audio)])[0]
    x, y, w, h = RECT.x, RECT.y, *RECT.size
    how = msgspec.structs.replace(manifest.jpeg, restart_interval=65_535)
    packet = xmp_packet(True)
    assert got[0][1] == got[6][1] == frame.jpeg
    assert got[1][0].box == got[2][0].box == got[7][0].box == RECT
    assert got[1][1] == jpeg_with_xmp(encode_frame(frame.image[y : y + h, x : x + w], how), packet)
    assert got[2][1] == jpeg_with_xmp(encode_frame(region, how), packet)
    other = msgspec.structs.replace(manifest.jpeg, quality=30)
    assert got[3][1] == got[4][1] == jpeg_with_xmp(encode_frame(frame.image, other), packet)
    assert pixels(got[5][1]).shape == (96, 80, 3)
    assert got[5][0].box == Rect(0, 0, 160, 192)
    assert len(got[7][1]) < len(got[1][1])
    assert all(jpeg.count(CREATOR_MARK) == 1 for _, jpeg in got.values())


def test_own_pictures_cost_no_inference(front: Front, tiny_avatar: Path) -> None:
    looks = [Look(), Look(Content.MOUTH), Look(Content.REGION), Look(max_width=80)]
    for k, look in enumerate(looks):
        front.submit(own(3, k, look=look))
    got = {a.number: (a, j) for a, j in front.run(len(looks))}
    with AvatarPackage.open(tiny_avatar) as package:
        picture = package.picture(3)
        assert got[0][1] == jpeg_with_xmp(bytes(package.frame_jpeg(3)), xmp_packet(True))
        square = package.crop(3)[4:-4, 4:-4]
    assert [got[k][0].box for k in range(4)] == [
        Rect(0, 0, 160, 192),
        RECT,
        RECT,
        Rect(0, 0, 160, 192),
    ]
    how = msgspec.structs.replace(package.manifest.jpeg, restart_interval=65_535)
    for k, part in ((1, picture[40:136, 32:128]), (2, square)):
        assert got[k][1] == jpeg_with_xmp(encode_frame(part, how), xmp_packet(True))
    assert front.engine.backend.cache_bytes["image halves"] == 0
    assert front.engine.counts.made == 4


# ---------------------------------------------------------------- order
def test_earliest_deadline_first_across_fronts_and_sessions(
    engine: Scheduler, front: Front, manifest: Manifest
) -> None:
    """All are there before the first is begun; of each front, answers come by deadline."""
    other = Front(engine, "front-2")
    order = np.random.default_rng(1).permutation(12)
    for number in order:
        job, pcm = speech_job(manifest, int(number), session=int(number) % 3)
        job = msgspec.structs.replace(job, deadline_ns=later() + int(number) * 10**9)
        (front, other)[int(number) % 2].submit(job, pcm)
    engine.intake.take()
    begun = []
    while engine.dispatcher.spoken:
        begun.append(engine.dispatcher.spoken.pop().job.number)
    assert begun == list(range(12))
    other.close()


def test_an_urgent_job_passes_those_that_wait(front: Front, manifest: Manifest) -> None:
    for number in range(40):
        front.submit(*speech_job(manifest, number))
    urgent, pcm = speech_job(manifest, 99, session=2)
    front.submit(msgspec.structs.replace(urgent, deadline_ns=later(60)), pcm)
    numbers = [answer.number for answer, _ in front.run(41)]
    assert sorted(numbers) == [*range(40), 99]
    assert numbers.index(99) <= front.engine.backend.depth


def test_own_pictures_do_not_wait_for_speech(front: Front, manifest: Manifest) -> None:
    for number in range(40):
        front.submit(*speech_job(manifest, number))
    front.submit(own(1, 99))
    numbers = [answer.number for answer, _ in front.run(41)]
    assert numbers.index(99) < 30


# ---------------------------------------------------------------- one answer each
def test_late_jobs_are_skipped(front: Front, manifest: Manifest) -> None:
    front.submit(*speech_job(manifest, 0, deadline_ns=time.monotonic_ns() - 1))
    front.submit(own(0, 1))
    front.submit(Job(1, 0, 2, "tiny", 0, 0))
    got = {a.number: a.status for a, _ in front.run(3)}
    assert got == {0: Status.SKIPPED, 1: Status.MADE, 2: Status.SKIPPED}
    assert front.engine.counts.skipped == 2


def test_jobs_that_become_late_while_they_wait_are_skipped_at_once(
    engine: Scheduler, front: Front, manifest: Manifest
) -> None:
    """Also while the device is full of other work."""
    front.submit(*speech_job(manifest, 0))
    engine.intake.take()
    engine.dispatcher.spoken.first.deadline_ns = 1
    engine.dispatcher.making = engine.backend.depth
    engine.step()
    engine.dispatcher.making = 0
    assert [a.status for a, _ in front.run(1)] == [Status.SKIPPED]


def test_jobs_that_would_be_late_are_not_begun(
    engine: Scheduler, front: Front, manifest: Manifest
) -> None:
    """They would make the next ones late; but one slow moment is not believed for ever."""
    engine.dispatcher.frame_time._mean_ns = 5e10  # a frame takes 50 s
    answers = []
    for number in range(60):
        front.submit(
            *speech_job(manifest, number, deadline_ns=time.monotonic_ns() + 20_000_000_000)
        )
        answers += front.run(1)
    statuses = [answer.status for answer, _ in answers]
    assert statuses[0] == Status.SKIPPED
    assert set(statuses[40:]) == {Status.MADE}


@pytest.mark.parametrize("where", ["features", "submit"])
def test_an_avatar_whose_jobs_fail_is_told_of_and_ends_nobody(
    engine: Scheduler,
    front: Front,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """In the loop itself, and in a thread of the backend: memory has run out, most likely."""
    told: list[tuple[str, str]] = []
    engine.registry.on_given_up = lambda name, reason: told.append((name, reason))
    job, pcm = speech_job(manifest)

    def fails(*_: object) -> None:
        raise MemoryError("std::bad_alloc\n0x7f")

    target, name = (
        (engine.backend, "features") if where == "features" else (engine.encoder, "frame")
    )
    with monkeypatch.context() as patched:
        patched.setattr(target, name, fails)
        for number in range(3):
            front.submit(msgspec.structs.replace(job, number=number), pcm)
            [(answer, _)] = front.run(1)
            assert (answer.status, answer.reason) == (Status.FAILED, "std::bad_alloc 0x7f")
    assert told == [(job.avatar, "std::bad_alloc 0x7f")], "once, with the second one"
    front.submit(msgspec.structs.replace(job, number=9), pcm)
    assert front.run(1)[0][0].status == Status.MADE


def test_jobs_that_cannot_be_done_say_why(front: Front, manifest: Manifest) -> None:
    good, pcm = speech_job(manifest)
    assert good.speech is not None
    speech = good.speech
    too_late = msgspec.structs.replace(speech, frame=30, first=30 * 640, samples=None, stream=1000)
    for number, (job, payload) in enumerate(
        [
            (msgspec.structs.replace(good, avatar="nobody"), pcm),
            (msgspec.structs.replace(good, avatar_frame=5), pcm),
            (msgspec.structs.replace(good, speech=too_late), pcm),
            (msgspec.structs.replace(good, speech=Speech(9, (1 << 62) - 1, None, 0)), pcm),
        ]
    ):
        front.submit(msgspec.structs.replace(job, number=number), payload)
    got = {a.number: a for a, _ in front.run(4)}
    assert {a.status for a in got.values()} == {Status.FAILED}
    assert got[0].reason == "avatar 'nobody' is not loaded"
    assert got[1].reason == "picture 5 of 5"
    assert "begins at sample 19200" in got[2].reason
    assert "there are no more" in got[3].reason
    assert front.engine.counts.failed == 4
    front.submit(good, pcm)
    assert front.run(1)[0][0].status == Status.MADE


def test_damaged_records_are_counted(front: Front, manifest: Manifest) -> None:
    job, _ = speech_job(manifest)
    front.submit(own(0, 1))
    for junk in (b"", b"\xff" * 100, b"\x02\x00ab" + bytes(20)):
        view = front.jobs.try_reserve(len(junk))
        assert view is not None
        view[:] = junk
        front.jobs.commit(len(junk))
    assert try_send(front.jobs, job, b"123"), "a payload that is no float32"
    front.submit(own(0, 2))
    assert [a.number for a, _ in front.run(2)] == [1, 2]
    assert front.engine.counts.damaged == 4


def test_cancelled_jobs_get_no_answer(engine: Scheduler, front: Front, manifest: Manifest) -> None:
    """Those of the session, of lower epochs, that have not begun."""
    other = Front(engine, "front-2")
    for number in range(10):
        front.submit(*speech_job(manifest, number, epoch=number % 2))
    front.submit(*speech_job(manifest, 20, session=2))
    other.submit(*speech_job(manifest, 30))
    front.submit(Cancel(1, 1))
    settle(engine)
    front.read()
    other.read()
    numbers = sorted(answer.number for answer, _ in front.got)
    assert numbers == [1, 3, 5, 7, 9, 20]
    assert [answer.number for answer, _ in other.got] == [30]
    assert engine.registry.avatars["tiny"].users == 0
    assert [link.waiting for link in front.engine.fronts.all()] == [0, 0]
    other.close()


def test_no_more_is_taken_of_a_front_than_its_share(engine: Scheduler, front: Front) -> None:
    for number in range(MOST_WAITING + 10):
        front.submit(own(0, number))
    other = Front(engine, "front-2")
    other.submit(own(0, 0))
    engine.intake.take()
    assert engine.waiting == MOST_WAITING + 1
    assert len(front.run(MOST_WAITING + 10)) == MOST_WAITING + 10
    other.close()


# ---------------------------------------------------------------- fronts
def test_a_front_that_does_not_read_costs_the_others_little(engine: Scheduler) -> None:
    asleep, awake = Front(engine, "asleep", answers=1 << 15), Front(engine, "awake")
    for number in range(60):
        asleep.submit(own(0, number))
    for number in range(20):
        awake.submit(own(0, number))
    assert [a.number for a, _ in awake.run(20)] == list(range(20))
    settle(engine)
    dropped = engine.counts.dropped
    assert dropped > 0
    asleep.read()
    assert len(asleep.got) + dropped == 60
    asleep.got = []
    asleep.submit(own(0, 100))
    assert [a.number for a, _ in asleep.run(1)] == [100], "it reads again"
    asleep.close()
    awake.close()


def test_a_front_that_is_gone(engine: Scheduler, front: Front, manifest: Manifest) -> None:
    """Its jobs are dropped; a successor of the same name gets nothing of them."""
    for number in range(20):
        front.submit(*speech_job(manifest, number))
    engine.step()
    engine.fronts.detach("front-1")
    successor = Front(engine)
    successor.submit(own(0, 77))
    assert [a.number for a, _ in successor.run(1)] == [77]
    settle(engine)
    successor.read()
    assert successor.got == []
    assert engine.registry.avatars["tiny"].users == 0
    successor.close()


def test_a_ring_that_lies_costs_its_front_alone(engine: Scheduler, front: Front) -> None:
    liar = Front(engine, "liar")
    liar.submit(own(0, 1))
    at = 4096 + 4  # the check word of the first record
    os.pwrite(liar.handles[0].memory, b"\0\0\0\x7f", at)
    front.submit(own(0, 5))
    assert [a.number for a, _ in front.run(1)] == [5]
    assert engine.fronts.names == ["front-1"]
    liar.close()


def test_rings_that_are_none_are_refused(engine: Scheduler) -> None:
    made = RingHandle.create(4096, 3), RingHandle.create(4096, 4)
    wrong = RingHandle(*made[1].fds, generation=3)
    with pytest.raises(RingError, match="generation"):
        engine.fronts.attach("front-9", made[0], wrong)
    assert "front-9" not in engine.fronts.names


# ---------------------------------------------------------------- avatars
def test_an_avatar_in_use_is_closed_by_its_last_job(
    engine: Scheduler, front: Front, manifest: Manifest
) -> None:
    for number in range(12):
        front.submit(*speech_job(manifest, number))
    engine.intake.take()
    served = engine.registry.avatars["tiny"]
    engine.registry.unload("tiny")
    front.submit(own(0, 50))
    got = {a.number: a.status for a, _ in front.run(13)}
    assert [got[k] for k in range(12)] == [Status.MADE] * 12
    assert got[50] == Status.FAILED
    assert served.users == 0
    assert served.package._storage.names() == [], "it is closed"
    assert engine.load_now().cache_bytes == dict.fromkeys(engine.load_now().cache_bytes, 0)


def test_loading_goes_on_beside_the_work(
    engine: Scheduler, front: Front, manifest: Manifest, tiny_avatar: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, str]] = []
    note: Callable[[str, str], None] = lambda name, error: told.append((name, error))  # noqa: E731
    engine.registry.load_later("second", str(tiny_avatar), note)
    engine.registry.load_later("none", str(tmp_path / "nothing"), note)
    front.submit(*speech_job(manifest))
    assert front.run(1)[0][0].status == Status.MADE
    until_true(engine, lambda: len(told) == 2)
    assert told[0] == ("second", "")
    assert told[1][0] == "none"
    assert "no such avatar package" in told[1][1]
    front.submit(*speech_job(manifest, avatar="second"))
    assert front.run(1)[0][0].status == Status.MADE


def test_replaced_while_in_use(
    engine: Scheduler, front: Front, manifest: Manifest, tiny_avatar: Path
) -> None:
    told: list[tuple[str, str]] = []
    for number in range(10):
        front.submit(*speech_job(manifest, number))
    engine.intake.take()
    first = engine.registry.avatars["tiny"]
    engine.registry.load_later("tiny", str(tiny_avatar), lambda *a: told.append(a))
    until_true(engine, lambda: bool(told))
    front.submit(*speech_job(manifest, 10))
    got = front.run(11)
    assert {a.status for a, _ in got} == {Status.MADE}
    assert engine.registry.avatars["tiny"] is not first
    assert first.package._storage.names() == []


def test_unloaded_before_it_was_loaded(engine: Scheduler, tiny_avatar: Path) -> None:
    told: list[str] = []
    engine.registry.load_later("x", str(tiny_avatar), lambda name, _: told.append(name))
    engine.registry.unload("x")
    engine.registry.load_later("y", str(tiny_avatar), lambda name, _: told.append(name))
    until_true(engine, lambda: "y" in told)
    assert told == ["y"]
    assert set(engine.registry.avatars) == {"tiny", "y"}


def test_an_avatar_that_is_not_there(engine: Scheduler, tmp_path: Path) -> None:
    with pytest.raises(AvatarNotFoundError):
        engine.registry.load("x", tmp_path / "nothing")


def test_frames_are_prepared_when_there_is_time(
    engine: Scheduler, front: Front, manifest: Manifest
) -> None:
    """All of the encoder's; the backend's once the avatar is used. Nothing is left to do then."""

    def warm_all() -> None:
        until = time.monotonic() + 60
        while (wait := engine.warm()) < SELDOM_S or engine.registry._warmup.running:
            assert time.monotonic() < until
            engine.sleep(min(wait, 0.01))
            engine.step()

    warm_all()
    held = engine.load_now().cache_bytes
    assert held["encoded frames"] > 0
    assert held["image halves"] == 0
    front.submit(*speech_job(manifest))
    first = front.run(1)
    warm_all()
    full = engine.load_now().cache_bytes
    assert full["image halves"] > 0
    for number in range(10):
        front.submit(*speech_job(manifest, number, avatar_frame=number % 5))
    front.run(10)
    assert engine.load_now().cache_bytes == full
    front.submit(*speech_job(manifest))
    assert front.run(1)[0][1] == first[0][1]


def test_load_as_told_to_the_supervisor(
    engine: Scheduler, front: Front, manifest: Manifest
) -> None:
    for number in range(20):
        front.submit(*speech_job(manifest, number))
    engine.step()
    load = engine.load_now()
    assert load.waiting + load.in_flight == 20
    assert load.waiting > 0
    assert load.oldest_ms > 0
    front.run(20)
    load = engine.load_now()
    assert (load.made, load.waiting, load.in_flight) == (20, 0, 0)
    assert load.oldest_ms == 0
    assert engine.idle
