# SPDX-License-Identifier: Apache-2.0
"""What drives a session's playout: the front's timer, answers of engines, and sound that comes.

timer, answers ─► tick ─► events, to be sent
                   └────► jobs ─► pool ─► answers
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from lipsync_fast.frontend.engines.engine_link import Pending
from lipsync_fast.frontend.engines.latency_estimate import urgent_before
from lipsync_fast.frontend.engines.trace import SessionTrace
from lipsync_fast.frontend.playout.plan import GRACE_NS
from lipsync_fast.frontend.playout.playout import Event, Playout
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.spoken import SpokenUtterances
from lipsync_fast.ipc.messages import Answer, Job
from lipsync_fast.signals import WakeUp
from lipsync_fast.timing import SLOT_NS

SLACK_NS = GRACE_NS + SLOT_NS // 2


class PlayoutDriver:
    """Joins one playout to the timer and the engines; its events go to ``show``.

    It is called in any task, by the timer and by answers, and fails in none of them: what goes
    wrong there is raised by ``run``, in the session's own.

    Args:
        number: of the session in its front.
        paced: frames have moments; else the client takes them as fast as it can.
        trace: follows spoken frames; None where nobody does.
        spoken: the session's utterances, which are told of engines.
        has_room: whether something may be shown; where not, who makes room calls ``tick``. None:
            always.
        show: sends what a moment has brought.
        ticked: called behind each moment.
    """

    def __init__(
        self,
        number: int,
        playout: Playout,
        services: Services,
        *,
        paced: bool,
        trace: SessionTrace | None,
        spoken: SpokenUtterances,
        has_room: Callable[[], bool] | None,
        show: Callable[[Event], None],
        ticked: Callable[[], None],
    ) -> None:
        self._number, self._playout, self._paced, self._trace = number, playout, paced, trace
        self._pool, self._margin_ns = services.pool, services.margin_ns
        self._spoken = spoken
        self._has_room, self._show, self._ticked = has_room, show, ticked
        self._alarm = services.timer.alarm(self.tick)
        self._broken = trio.Event()
        self._reason: Exception | None = None
        """What went wrong outside of the session's own tasks."""
        self.progress = WakeUp()
        """Rung when sound that waited may have got its slots."""

    async def run(self) -> None:
        """Begin, and raise what goes wrong."""
        self.tick()
        await self._broken.wait()
        assert self._reason is not None
        raise self._reason

    def tick(self) -> None:
        """Show what is due, and ask for what comes."""
        if self._broken.is_set() or not (self._has_room is None or self._has_room()):
            return
        try:
            for event in self._playout.tick(time.monotonic_ns()):
                self._show(event)
            self.send_jobs()
        except Exception as error:
            self._reason = error
            self._broken.set()
            return
        self._ticked()
        self.progress.ring()
        self._alarm.set(self._playout.wake_ns)

    def tick_if_due(self) -> None:
        """Tick where something is due before the timer rings: sound alone seldom does that."""
        wake, due = self._playout.wake_ns, self._alarm.due_ns
        if wake is not None and (due is None or wake < due):
            self.tick()

    def send_jobs(self) -> None:
        """Have the engines make what the playout asks for."""
        jobs, urgent_ns = self._playout.jobs, 0
        if jobs and self._paced:
            margin_ns = self._margin_ns()
            urgent_ns = urgent_before(
                time.monotonic_ns(), margin_ns, self._playout.margin_ns, SLACK_NS
            )
        while jobs:
            job, pcm = jobs.popleft()
            urgent = job.deadline_ns < urgent_ns
            pending = Pending(job, pcm, self._answered, self._lost, urgent)
            if self._trace is not None:
                self._trace.asked(pending)
            engine = self._pool.submit(pending)
            if engine:
                self._spoken.on_asked(engine, self._pool.has)

    def interrupt(self) -> None:
        """Drop all that is to be said, here and at the engines."""
        self._playout.interrupt(time.monotonic_ns())
        self._pool.cancel(self._number, self._playout.epoch)
        self.progress.ring()

    def _answered(self, answer: Answer, jpeg: memoryview) -> None:
        if self._trace is not None:
            self._trace.answered(answer)
        if self._playout.answered(answer, bytes(jpeg)):
            self.tick()

    def _lost(self, job: Job) -> Job | None:
        now = time.monotonic_ns()
        self._spoken.on_lost()
        again = self._playout.lost(job, now)
        self._alarm.set(now)
        return again

    def close(self) -> None:
        """The session has ended: nothing rings any more, and no job is owed."""
        self._alarm.close()
        self._pool.forget(self._number)
