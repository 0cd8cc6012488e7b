# SPDX-License-Identifier: Apache-2.0
"""One engine as a front holds it: a ring of jobs to it, a ring of answers back, what it owes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import trio
from numpy import float32, uint8
from numpy.typing import NDArray

from lipsync_fast.errors import MessageError
from lipsync_fast.frontend.engines.latency_estimate import LatencyEstimate
from lipsync_fast.ipc.control import EngineInfo
from lipsync_fast.ipc.messages import (
    Answer,
    Asked,
    Cancel,
    EndStream,
    Status,
    read_answer,
    try_send,
)
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.front")
Key = tuple[int, int, int]
"""Session, epoch and number of a job: unlike all others of this front."""


@dataclass(slots=True)
class Pending:
    """A job, or a stream's picture, that is not answered yet.

    Attributes:
        pcm: the sound that it sees; of a stream's picture, what is put into it.
        answered: gets the answer and the JPEG, to be copied before it returns.
        lost: what to do when its engine is gone or there is none: the job as it is to be sent
            again, or None to give it up.
        urgent: it has a moment; how long its answer takes counts for ``EnginePool.latency``.
        sent_ns: when it went into a ring.
    """

    job: Asked
    pcm: NDArray[float32] | NDArray[uint8]
    answered: Callable[[Answer, memoryview], None]
    lost: Callable[[Any], Asked | None]
    urgent: bool = False
    sent_ns: int = 0

    @property
    def key(self) -> Key:
        """What its answer is known by."""
        return self.job.session, self.job.epoch, self.job.number

    def is_before(self, session: int, epoch: int) -> bool:
        """Whether it is a session's, of an epoch before another."""
        return self.job.session == session and self.job.epoch < epoch


class EngineLink:
    """Sends jobs in their order, and hands each answer to who waits for it, once.

    Policy of a full job ring: jobs wait here, in order, and go out as answers come.

    Attributes:
        info: what the supervisor has said of the engine last.
        answers: their ring.
        scope: of the task that reads the answers; cancelled when the engine is gone.
        damaged: answers that could not be read.

    Raises:
        RingError: the rings are not what they should be; the handles stay the caller's.
    """

    def __init__(
        self, info: EngineInfo, jobs: RingHandle, answers: RingHandle, latency: LatencyEstimate
    ) -> None:
        self.name, self.info = info.name, info
        self._jobs, self.answers = RingWriter(jobs), RingReader(answers)
        self._handles, self._latency = (jobs, answers), latency
        self.scope = trio.CancelScope()
        self.damaged = 0
        self._pending: dict[Key, Pending] = {}
        self._unsent: deque[Pending] = deque()

    @property
    def backlog(self) -> int:
        """Jobs that it owes."""
        return len(self._pending) + len(self._unsent)

    @property
    def capacity(self) -> float:
        """Frames a second that it makes."""
        return max(1.0, self.info.capacity)

    @property
    def frames_per_s(self) -> float:
        """Frames a second that it makes now, for all fronts."""
        return self.info.frames_per_s

    def send(self, pending: Pending) -> None:
        """Have a job done by this engine."""
        self._unsent.append(pending)
        self._send_unsent()

    def _send_unsent(self) -> None:
        """Move jobs into the ring, in order, while they fit."""
        while self._unsent:
            pending = self._unsent[0]
            payload = memoryview(pending.pcm.data).cast("B") if len(pending.pcm) else b""
            pending.sent_ns = time.monotonic_ns()  # before: the engine may be faster
            if not try_send(self._jobs, pending.job, payload):
                return
            self._unsent.popleft()
            self._pending[pending.key] = pending

    def cancel(self, session: int, epoch: int) -> None:
        """Take back a session's jobs of epochs before ``epoch``: they get no answer."""
        old = [k for k, p in self._pending.items() if p.is_before(session, epoch)]
        self._unsent = deque(p for p in self._unsent if not p.is_before(session, epoch))
        for key in old:
            del self._pending[key]
        if old:  # so that they are not made for nothing; where the ring is full, they are
            try_send(self._jobs, Cancel(session, epoch))

    def end_stream(self, stream: int) -> None:
        """A stream has ended; where that is not heard, its encoder is closed when it has rested."""
        self.cancel(stream, 1 << 60)
        try_send(self._jobs, EndStream(stream))

    def take_answers(self) -> Iterator[None]:
        """Hand out what has been answered, one by one.

        Raises:
            RingError: the ring is not what it should be: nothing from there can be believed.
        """
        while (record := self.answers.next()) is not None:
            try:
                answer, jpeg = read_answer(record)
                key = (answer.session, answer.epoch, answer.number)
                pending = self._pending.pop(key, None)
                if pending is not None:
                    if pending.urgent:
                        took = time.monotonic_ns() - pending.sent_ns
                        self._latency.took(took, answer.status == Status.SKIPPED)
                    pending.answered(answer, jpeg)
            except MessageError as error:
                self.damaged += 1
                log.warning("damaged answer", engine=self.name, reason=str(error))
            finally:
                self.answers.release()
            self._send_unsent()
            yield

    def close(self) -> list[Pending]:
        """Stop reading, and close the rings; gives the jobs that it owes."""
        self.scope.cancel()
        for handle in self._handles:
            handle.close()
        return [*self._pending.values(), *self._unsent]
