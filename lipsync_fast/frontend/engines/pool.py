# SPDX-License-Identifier: Apache-2.0
"""The engines as a front sees them: jobs out, answers in, and what happens when one dies.

    submit ─► an active engine that holds the avatar (placement.py) ─► its job ring
    answered ◄─ callbacks, in the order of the answers ◄────────────────────── its answer ring

Each job that was submitted and not taken back is answered once, by whichever engine: those that a
dead engine owes go to another one, and wait where there is none. ``Pending.lost`` is asked first,
which may give the job more time or give it up.

Policy of a full job ring: the job waits here, in order, and goes out as answers come; admission
keeps what can be outstanding far below what a ring holds.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio
from numpy import float32
from numpy.typing import NDArray

from lipsync_fast.errors import MessageError, RingError
from lipsync_fast.frontend.engines.latency_estimate import LatencyEstimate
from lipsync_fast.frontend.engines.placement import Placement
from lipsync_fast.ipc.control import EngineInfo
from lipsync_fast.ipc.messages import Answer, Cancel, Job, Status, read_answer, try_send
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter
from lipsync_fast.logs import get_logger
from lipsync_fast.signals import Changes

log = get_logger("lipsync.front")
Key = tuple[int, int, int]
"""Session, epoch and number of a job: unlike all others of this front."""
ANSWERS_IN_A_ROW = 32
"""Taken before other tasks get their turn."""


@dataclass(slots=True)
class Pending:
    """A job that is not answered yet.

    Attributes:
        answered: gets the answer and the JPEG, to be copied before it returns.
        lost: what to do when its engine is gone or there is none: the job as it is to be sent
            again, or None to give it up.
        urgent: it has a place in time; how long its answer takes counts for ``EnginePool.latency``.
        sent_ns: when it went into a ring.
    """

    job: Job
    pcm: NDArray[float32]
    answered: Callable[[Answer, memoryview], None]
    lost: Callable[[Job], Job | None]
    urgent: bool = False
    sent_ns: int = 0

    @property
    def key(self) -> Key:
        """What its answer is known by."""
        return self.job.session, self.job.epoch, self.job.number


@dataclass(slots=True)
class Engine:
    """An engine whose rings this front holds."""

    name: str
    jobs: RingWriter
    answers: RingReader
    handles: tuple[RingHandle, RingHandle]
    info: EngineInfo
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    pending: dict[Key, Pending] = field(default_factory=dict)
    unsent: deque[Pending] = field(default_factory=deque)

    @property
    def backlog(self) -> int:
        """Jobs that it owes."""
        return len(self.pending) + len(self.unsent)

    @property
    def capacity(self) -> float:
        """Frames a second that it makes."""
        return max(1.0, self.info.capacity)

    @property
    def frames_per_s(self) -> float:
        """Frames a second that it makes now, for all fronts."""
        return self.info.frames_per_s


class EnginePool:
    """All engines of the server, for one front. One thread; ``nursery`` owns its readers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._engines: dict[str, Engine] = {}
        self._infos: dict[str, EngineInfo] = {}
        self._waiting: deque[Pending] = deque()
        self._placement = Placement()
        self._changed = Changes()
        self.redispatched = 0
        self.damaged = 0
        self.latency = LatencyEstimate()
        """What urgent jobs take."""

    # ------------------------------------------------------------ what the supervisor says
    def attach(self, name: str, jobs: RingHandle, answers: RingHandle) -> None:
        """Take the rings to a new engine; the handles are closed when it is gone."""
        info = self._infos.get(name) or EngineInfo(
            name=name, device="", active=False, capacity=0.0, avatars=[]
        )
        handles = jobs, answers
        try:
            engine = Engine(name, RingWriter(jobs), RingReader(answers), handles, info)
        except RingError as error:
            log.error("cannot take the rings of an engine", engine=name, reason=str(error))
            for handle in handles:
                handle.close()
            return
        self.gone(name)
        self._engines[name] = engine
        self._nursery.start_soon(self._read_answers, engine)
        self._retry_waiting()

    def update(self, engines: list[EngineInfo]) -> None:
        """The engines that there are now; those that are not named are gone."""
        self._infos = {info.name: info for info in engines}
        for name, engine in self._engines.items():
            if name in self._infos:
                engine.info = self._infos[name]
        for name in [n for n in self._engines if n not in self._infos]:
            self.gone(name)
        self._retry_waiting()
        self._changed.notify()

    def gone(self, name: str) -> None:
        """An engine has died: what it has answered is taken, what it owes goes to others."""
        engine = self._engines.pop(name, None)
        if engine is None:
            return
        with contextlib.suppress(RingError):
            for _ in self._answers(engine):
                pass
        engine.scope.cancel()
        for handle in engine.handles:
            handle.close()
        owed = [*engine.pending.values(), *engine.unsent]
        if owed:
            log.warning("engine lost; its jobs go to others", engine=name, jobs=len(owed))
        for pending in owed:
            self.redispatched += 1
            pending.urgent = False  # that it took long says nothing of its next engine
            self._again(pending)

    # ------------------------------------------------------------ what sessions ask
    @property
    def engines(self) -> list[EngineInfo]:
        """All engines of the server, as the supervisor has said last."""
        return list(self._infos.values())

    @property
    def capacity(self) -> float:
        """Frames a second that the active engines make."""
        return sum(i.capacity for i in self._infos.values() if i.active)

    @property
    def maker(self) -> str:
        """What pictures of the active engines depend on besides their jobs; "" while none works."""
        return next((i.maker for i in self._infos.values() if i.active), "")

    @property
    def backlog(self) -> int:
        """Jobs that are not answered yet."""
        return len(self._waiting) + sum(e.backlog for e in self._engines.values())

    def holds(self, avatar: str) -> bool:
        """Whether a job of that avatar can be done now."""
        return any(True for _ in self._candidates(avatar))

    def error(self, avatar: str) -> str | None:
        """Why no engine can load an avatar; None where one can or none has tried."""
        errors = [i.errors.get(avatar) for i in self._infos.values()]
        found = [e for e in errors if e is not None]
        return found[0] if found and len(found) == len(errors) else None

    async def changed(self) -> None:
        """Wait for the next ``update``."""
        await self._changed.wait()

    def submit(self, pending: Pending) -> None:
        """Have a job done. Where no engine can, it waits for one."""
        engine = self._choose(pending.job)
        if engine is None:
            self._again(pending)
        else:
            self._send(engine, pending)

    def cancel(self, session: int, epoch: int) -> None:
        """Take back a session's jobs of epochs before ``epoch``: they get no answer."""
        self._waiting = deque(p for p in self._waiting if not _older(p, session, epoch))
        for engine in self._engines.values():
            old = [k for k, p in engine.pending.items() if _older(p, session, epoch)]
            engine.unsent = deque(p for p in engine.unsent if not _older(p, session, epoch))
            if old:
                for key in old:
                    del engine.pending[key]
                # So that they are not made for nothing; where the ring is full, they are.
                try_send(engine.jobs, Cancel(session, epoch))

    def forget(self, session: int) -> None:
        """A session has ended."""
        self.cancel(session, 1 << 60)
        self._placement.forget(session)

    # ------------------------------------------------------------ how
    def _candidates(self, avatar: str) -> Iterator[Engine]:
        return (e for e in self._engines.values() if e.info.active and avatar in e.info.avatars)

    def _choose(self, job: Job) -> Engine | None:
        """Where a job is to be done; None where none can."""
        able = list(self._candidates(job.avatar))
        return self._placement.choose(able, job.session, time.monotonic_ns()) if able else None

    def _send(self, engine: Engine, pending: Pending) -> None:
        engine.unsent.append(pending)
        self._send_unsent(engine)

    def _send_unsent(self, engine: Engine) -> None:
        """Put jobs into the ring, in order, while they fit."""
        while engine.unsent:
            pending = engine.unsent[0]
            payload = memoryview(pending.pcm.data).cast("B") if len(pending.pcm) else b""
            pending.sent_ns = time.monotonic_ns()  # before: the engine may be faster
            if not try_send(engine.jobs, pending.job, payload):
                return
            engine.unsent.popleft()
            engine.pending[pending.key] = pending

    def _again(self, pending: Pending) -> None:
        """Send a job to another engine, or keep it until there is one."""
        job = pending.lost(pending.job)
        if job is None:
            return
        pending.job = job
        engine = self._choose(job)
        if engine is None:
            self._waiting.append(pending)
        else:
            self._send(engine, pending)

    def _retry_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for pending in waiting:
            engine = self._choose(pending.job)
            if engine is None:
                self._waiting.append(pending)
            else:
                self._send(engine, pending)

    async def _read_answers(self, engine: Engine) -> None:
        with engine.scope:
            await trio.lowlevel.checkpoint()
            while not engine.scope.cancel_called:
                try:
                    taken = sum(
                        1 for _ in itertools.islice(self._answers(engine), ANSWERS_IN_A_ROW)
                    )
                except RingError as error:
                    # Its memory is not what it should be: nothing from there can be believed.
                    log.error("answers cannot be read", engine=engine.name, reason=str(error))
                    self.gone(engine.name)
                    return
                if taken < ANSWERS_IN_A_ROW and engine.answers.want_data():
                    await trio.lowlevel.wait_readable(engine.answers.doorbell)
                    if not engine.scope.cancel_called:  # else its descriptors are closed
                        engine.answers.drain()
                else:
                    await trio.lowlevel.checkpoint()

    def _answers(self, engine: Engine) -> Iterator[None]:
        """Take what has been answered."""
        while (record := engine.answers.next()) is not None:
            try:
                answer, jpeg = read_answer(record)
                key = (answer.session, answer.epoch, answer.number)
                pending = engine.pending.pop(key, None)
                if pending is not None:
                    if pending.urgent:
                        took = time.monotonic_ns() - pending.sent_ns
                        self.latency.took(took, answer.status == Status.SKIPPED)
                    pending.answered(answer, jpeg)
            except MessageError as error:
                self.damaged += 1
                log.warning("damaged answer", engine=engine.name, reason=str(error))
            finally:
                engine.answers.release()
            self._send_unsent(engine)
            yield


def _older(pending: Pending, session: int, epoch: int) -> bool:
    return pending.job.session == session and pending.job.epoch < epoch
