# SPDX-License-Identifier: Apache-2.0
"""The engines as a front sees them, over real rings, with engines that the test plays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

from lipsync_fast.errors import MessageError
from lipsync_fast.frontend.engines.engine_link import Pending
from lipsync_fast.frontend.engines.placement import PAUSE_NS
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.ipc.control import EngineInfo
from lipsync_fast.ipc.messages import (
    Answer,
    Cancel,
    Job,
    Status,
    read_answer,
    read_job,
    samples_of,
    try_send,
)
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter

FAR = 1 << 60


class PlayedEngine:
    """An engine's ends of its rings."""

    def __init__(self, name: str, generation: int, jobs_bytes: int = 1 << 16) -> None:
        self.name = name
        self.job_ring = RingHandle.create(jobs_bytes, generation)
        self.answer_ring = RingHandle.create(1 << 16, generation)
        self.jobs = RingReader(self.job_ring)
        self.answers = RingWriter(self.answer_ring)
        self.seen: list[Job] = []
        self.cancels: list[Cancel] = []

    def copies(self) -> tuple[RingHandle, RingHandle]:
        """Handles whose descriptors belong to the pool."""
        import os

        def copy(h: RingHandle) -> RingHandle:
            return RingHandle(*(os.dup(fd) for fd in h.fds), h.generation)

        return copy(self.job_ring), copy(self.answer_ring)

    def take(self) -> list[Job]:
        out = []
        while (record := self.jobs.next()) is not None:
            job, payload = read_job(record)
            if isinstance(job, Cancel):
                self.cancels.append(job)
            else:
                assert len(samples_of(payload)) == job.avatar_frame, "a job keeps its samples"
                out.append(job)
            self.jobs.release()
        self.seen += out
        return out

    def answer(self, job: Job, status: Status = Status.MADE) -> None:
        about = Answer(job.session, job.epoch, job.number, status)
        assert try_send(self.answers, about, f"{self.name}:{job.number}".encode())

    def close(self) -> None:
        self.job_ring.close()
        self.answer_ring.close()


@dataclass
class World:
    """A pool and its engines."""

    pool: EnginePool
    engines: dict[str, PlayedEngine] = field(default_factory=dict)
    infos: dict[str, EngineInfo] = field(default_factory=dict)
    got: list[tuple[int, str]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    give_up: bool = False

    def start(
        self,
        name: str,
        active: bool = True,
        avatars: tuple[str, ...] = ("a",),
        capacity: float = 50.0,
    ) -> None:
        engine = PlayedEngine(name, len(self.engines) + 1)
        self.engines[name] = engine
        self.infos[name] = EngineInfo(
            name=name, device="cpu", active=active, capacity=capacity, avatars=list(avatars)
        )
        self.pool.attach(name, *engine.copies())
        self.tell()

    def tell(self) -> None:
        self.pool.update(list(self.infos.values()))

    def submit(self, number: int, session: int = 1, avatar: str = "a", size: int = 10) -> None:
        job = Job(session, 0, number, avatar, size, FAR)
        pcm = np.zeros(size, np.float32)
        self.pool.submit(Pending(job, pcm, self._answered, self._again))

    def _answered(self, answer: Answer, jpeg: memoryview) -> None:
        self.got.append((answer.number, bytes(jpeg).decode()))

    def _again(self, job: Job) -> Job | None:
        self.lost.append(job.number)
        return None if self.give_up else msgspec.structs.replace(job, deadline_ns=FAR + 1)

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not done():
                await trio.lowlevel.checkpoint()


def played(test: Callable[[World], Any]) -> Callable[[], None]:
    """Run an async test with a pool that ends with it."""

    def run() -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                world = World(EnginePool(nursery))
                try:
                    await test(world)
                finally:
                    for name in list(world.pool._engines):
                        world.pool.gone(name)
                    for engine in world.engines.values():
                        engine.close()
                    nursery.cancel_scope.cancel()

        trio.run(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@played
async def test_jobs_out_answers_in(world: World) -> None:
    world.start("e1")
    for number in range(5):
        world.submit(number)
    jobs = world.engines["e1"].take()
    assert [j.number for j in jobs] == list(range(5))
    for job in reversed(jobs):
        world.engines["e1"].answer(job)
    await world.until(lambda: len(world.got) == 5)
    assert world.got == [(n, f"e1:{n}") for n in (4, 3, 2, 1, 0)]
    assert world.pool.backlog == 0
    assert not world.lost


@played
async def test_an_answer_that_nobody_waits_for_is_ignored(world: World) -> None:
    world.start("e1")
    world.submit(1)
    (job,) = world.engines["e1"].take()
    world.engines["e1"].answer(msgspec.structs.replace(job, number=9))
    world.engines["e1"].answer(job)
    world.engines["e1"].answer(job)
    await world.until(lambda: bool(world.got))
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    assert world.got == [(1, "e1:1")]


@played
async def test_what_a_dead_engine_owes_goes_to_another(world: World) -> None:
    """What it had answered is taken; the rest is asked of the spare at once."""
    world.start("e1")
    world.start("e2", active=False)
    for number in range(6):
        world.submit(number)
    jobs = world.engines["e1"].take()
    assert not world.engines["e2"].take()
    world.engines["e1"].answer(jobs[0])
    world.engines["e1"].answer(jobs[3])
    del world.infos["e1"]
    world.infos["e2"].active = True
    world.tell()
    again = world.engines["e2"].take()
    assert [j.number for j in again] == [1, 2, 4, 5]
    assert all(j.deadline_ns == FAR + 1 for j in again)
    assert world.pool.redispatched == 4
    for job in again:
        world.engines["e2"].answer(job)
    await world.until(lambda: len(world.got) == 6)
    assert sorted(n for n, _ in world.got) == list(range(6))


@played
async def test_jobs_wait_for_an_engine(world: World) -> None:
    world.submit(1)
    world.start("e1", avatars=("b",))
    assert not world.engines["e1"].take()
    assert world.lost == [1], "asked once whether it is still wanted"
    world.infos["e1"].avatars.append("a")
    world.tell()
    assert [j.number for j in world.engines["e1"].take()] == [1]


@played
async def test_a_job_that_is_given_up_goes_nowhere(world: World) -> None:
    world.start("e1")
    world.submit(1)
    world.give_up = True
    world.start("e2")
    world.pool.gone("e1")
    assert not world.engines["e2"].take()
    assert world.pool.backlog == 0


@played
async def test_a_session_stays_with_its_engine_until_that_has_much_more_to_do(
    world: World,
) -> None:
    world.start("e1")
    world.start("e2")
    for number in range(4):
        world.submit(number, session=1)
        world.submit(number, session=2)
    one = world.engines["e1"].take() + world.engines["e2"].take()
    assert len({(j.session, e.name) for e in world.engines.values() for j in e.seen}) == 2
    assert len(one) == 8
    for number in range(4, 60):
        world.submit(number, session=1)
    assert all(len(e.take()) > 10 for e in world.engines.values())


def speaking(world: World) -> dict[str, set[int]]:
    """Which sessions' jobs each engine has got since this was asked last."""
    return {name: {job.session for job in e.take()} for name, e in world.engines.items()}


@played
async def test_sessions_go_where_most_room_is(world: World) -> None:
    world.start("small", capacity=60.0)
    world.start("large", capacity=200.0)
    for session in range(1, 10):
        world.submit(0, session)
    got = speaking(world)
    assert (len(got["small"]), len(got["large"])) == (2, 7)
    for number in range(1, 4):
        for session in range(1, 10):
            world.submit(number, session)
    assert speaking(world) == got, "they stay"


@played
async def test_what_an_engine_makes_for_other_fronts_takes_room(world: World) -> None:
    world.start("e1", capacity=100.0)
    world.start("e2", capacity=100.0)
    world.infos["e1"].frames_per_s = 60.0
    world.tell()
    for session in range(1, 5):
        world.submit(0, session)
    got = speaking(world)
    assert (len(got["e1"]), len(got["e2"])) == (1, 3)


@played
async def test_only_engines_that_hold_the_avatar_get_its_sessions(world: World) -> None:
    world.start("e1", avatars=("a",), capacity=50.0)
    world.start("e2", avatars=("a", "b"), capacity=1000.0)
    world.start("e3", avatars=("a", "b"), capacity=2000.0, active=False)
    for session in range(1, 6):
        world.submit(0, session, avatar="b")
        world.submit(0, 100 + session, avatar="a")
    got = speaking(world)
    assert got["e2"] >= {1, 2, 3, 4, 5}
    assert not got["e3"]


@played
async def test_a_session_that_was_silent_is_placed_anew(world: World) -> None:
    """Where its own engine has filled up meanwhile, elsewhere; else where it was."""
    world.start("e1", capacity=100.0)
    world.start("e2", capacity=100.0)
    for session in (1, 2):
        world.submit(0, session)
    (one,) = (name for name, sessions in speaking(world).items() if 1 in sessions)
    for placed in world.pool._placement._placed.values():
        placed.asked_ns -= 2 * PAUSE_NS
    world.submit(1, 1)
    assert speaking(world)[one] == {1}
    world.pool._placement._placed[1].asked_ns -= 2 * PAUSE_NS
    world.infos[one].frames_per_s = 90.0
    world.tell()
    world.submit(2, 1)
    assert 1 not in speaking(world)[one]


@played
async def test_many_short_waits_do_not_move_a_session_from_a_fast_engine(world: World) -> None:
    """Forty jobs are 20 ms of an engine that makes 2,000 a second."""
    world.start("e1", capacity=2000.0)
    world.submit(0, session=1)
    world.start("e2", capacity=2000.0)
    for number in range(1, 41):
        world.submit(number, session=1)
    assert speaking(world) == {"e1": {1}, "e2": set()}
    for number in range(41, 141):
        world.submit(number, session=1)
    assert speaking(world) == {"e1": {1}, "e2": {1}}


@played
async def test_a_full_ring_holds_jobs_back_in_order(world: World) -> None:
    world.engines["e1"] = engine = PlayedEngine("e1", 1, jobs_bytes=4096)
    world.infos["e1"] = EngineInfo(
        name="e1", device="cpu", active=True, capacity=1.0, avatars=["a"]
    )
    world.pool.attach("e1", *engine.copies())
    world.tell()
    for number in range(12):
        world.submit(number, size=200)
    seen: list[int] = []
    while len(seen) < 12:
        jobs = engine.take()
        assert jobs
        assert len(jobs) < 12
        seen += [j.number for j in jobs]
        for job in jobs:
            engine.answer(job)
        await world.until(lambda: len(world.got) == len(seen))  # noqa: B023
    assert seen == list(range(12))


@played
async def test_cancelled_jobs_are_taken_back(world: World) -> None:
    world.start("e1")
    world.submit(1)
    world.submit(2, session=2)
    world.pool.cancel(1, 5)
    engine = world.engines["e1"]
    jobs = engine.take()
    assert engine.cancels == [Cancel(1, 5)]
    for job in jobs:
        engine.answer(job)
    await world.until(lambda: bool(world.got))
    assert world.got == [(2, "e1:2")]
    world.pool.gone("e1")
    assert not world.lost


@played
async def test_garbage_in_an_answer_ring_costs_only_itself(world: World) -> None:
    world.start("e1")
    world.submit(1)
    engine = world.engines["e1"]
    view = engine.answers.try_reserve(40)
    assert view is not None
    view[:] = bytes(range(40))
    view.release()
    engine.answers.commit(40)
    (job,) = engine.take()
    engine.answer(job)
    await world.until(lambda: bool(world.got))
    assert world.pool.damaged == 1


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(MessageError):
        read_answer(memoryview(b"\xff\xff"))
