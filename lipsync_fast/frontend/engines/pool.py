# SPDX-License-Identifier: Apache-2.0
"""The engines as a front sees them: jobs out, answers in, and what happens when one dies.

    submit ─► an active engine that holds the avatar (placement.py) ─► its job ring
    answered ◄─ callbacks, in the order of the answers ◄─ its answer ring (engine_link.py)

Each job that was submitted and not taken back is answered once, by whichever engine: those that a
dead engine owes go to another one, and wait where there is none. ``Pending.lost`` is asked first,
which may give the job more time or give it up.

Policy of a full job ring: the job waits here, in order, and goes out as answers come; admission
keeps what can be outstanding far below what a ring holds.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Iterator

import trio

from lipsync_fast.errors import RingError
from lipsync_fast.frontend.engines.engine_link import EngineLink, Pending
from lipsync_fast.frontend.engines.latency_estimate import LatencyEstimate
from lipsync_fast.frontend.engines.placement import Placement, StreamPlacement
from lipsync_fast.ipc.control import EngineInfo
from lipsync_fast.ipc.messages import Asked, Encode
from lipsync_fast.ipc.ring import RingHandle
from lipsync_fast.logs import get_logger
from lipsync_fast.signals import Changes

log = get_logger("lipsync.front")
ANSWERS_IN_A_ROW = 32
"""Taken before other tasks get their turn."""


class EnginePool:
    """All engines of the server, for one front. One thread; ``nursery`` owns its readers.

    Half of its methods are figures that others ask for, each in a line or two.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._engines: dict[str, EngineLink] = {}
        self._infos: dict[str, EngineInfo] = {}
        self._waiting: deque[Pending] = deque()
        self._placement, self._streams = Placement(), StreamPlacement()
        self._changed = Changes()
        self.redispatched = 0
        self._damaged = 0
        self.latency = LatencyEstimate()
        """What urgent jobs take."""

    # ------------------------------------------------------------ what the supervisor says
    def attach(self, name: str, jobs: RingHandle, answers: RingHandle) -> None:
        """Take the rings to a new engine; the handles are closed when it is gone."""
        info = self._infos.get(name) or EngineInfo(
            name=name, device="", active=False, capacity=0.0, avatars=[]
        )
        try:
            engine = EngineLink(info, jobs, answers, self.latency)
        except RingError as error:
            log.error("cannot take the rings of an engine", engine=name, reason=str(error))
            for handle in (jobs, answers):
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
            for _ in engine.take_answers():
                pass
        self._damaged += engine.damaged
        owed = engine.close()
        if owed:
            log.warning("engine lost; its jobs go to others", engine=name, jobs=len(owed))
        for pending in owed:
            self.redispatched += 1
            pending.urgent = False  # that it took long says nothing of its next engine
            self._again(pending)

    # ------------------------------------------------------------ what sessions ask
    def has(self, name: str) -> bool:
        """Whether an engine can be asked, or could be once it is active."""
        return name in self._engines

    @property
    def engines(self) -> list[EngineInfo]:
        """All engines of the server, as the supervisor has said last."""
        return list(self._infos.values())

    @property
    def capacity(self) -> float:
        """Frames a second that the active engines make."""
        return sum(i.capacity for i in self._infos.values() if i.active)

    @property
    def encoding(self) -> float:
        """What encoding H.264 for one that speaks costs, in speakers; inf where no engine can.

        Of a CPU engine, the same processors make the frames; beside a GPU, they do nothing else.
        """
        active = [i for i in self._infos.values() if i.active]
        able = [i for i in active if i.encodes_per_s]
        if not able:
            return math.inf
        cost = self.capacity / sum(i.encodes_per_s for i in able)
        return cost if all(i.device == "cpu" for i in active) else max(0.0, cost - 1)

    @property
    def maker(self) -> str:
        """What pictures of the active engines depend on besides their jobs; "" while none works."""
        return next((i.maker for i in self._infos.values() if i.active), "")

    @property
    def damaged(self) -> int:
        """Answers that could not be read, ever."""
        return self._damaged + sum(e.damaged for e in self._engines.values())

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

    def submit(self, pending: Pending) -> str:
        """Have a job done. Where no engine can, it waits for one.

        Returns:
            The engine that gets it; nothing where none does yet.
        """
        engine = self._choose(pending.job)
        if engine is None:
            self._again(pending)
            return ""
        engine.send(pending)
        return engine.name

    def cancel(self, session: int, epoch: int) -> None:
        """Take back a session's jobs of epochs before ``epoch``: they get no answer."""
        self._waiting = deque(p for p in self._waiting if not p.is_before(session, epoch))
        for engine in self._engines.values():
            engine.cancel(session, epoch)

    def forget(self, session: int) -> None:
        """A session has ended."""
        self.cancel(session, 1 << 60)
        self._placement.forget(session)

    # ------------------------------------------------------------ how
    def _candidates(self, avatar: str) -> Iterator[EngineLink]:
        return (e for e in self._engines.values() if e.info.active and avatar in e.info.avatars)

    def end_stream(self, stream: int) -> None:
        """A stream of H.264 has ended."""
        self._waiting = deque(p for p in self._waiting if p.job.session != stream)
        placed = self._engines.get(self._streams.forget(stream))
        if placed is not None:
            placed.end_stream(stream)

    def _choose(self, job: Asked) -> EngineLink | None:
        """Where a job is to be done; None where none can."""
        able = list(self._candidates(job.avatar))
        if isinstance(job, Encode):
            able = [engine for engine in able if engine.info.encodes_per_s]
            return self._streams.choose(able, job.session) if able else None
        return self._placement.choose(able, job.session, time.monotonic_ns()) if able else None

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
            engine.send(pending)

    def _retry_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for pending in waiting:
            engine = self._choose(pending.job)
            if engine is None:
                self._waiting.append(pending)
            else:
                engine.send(pending)

    async def _read_answers(self, engine: EngineLink) -> None:
        with engine.scope:
            await trio.lowlevel.checkpoint()
            while not engine.scope.cancel_called:
                try:
                    taken = sum(
                        1 for _ in itertools.islice(engine.take_answers(), ANSWERS_IN_A_ROW)
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
