# SPDX-License-Identifier: Apache-2.0
"""What an engine answers: exactly once for each job that it has taken and nobody has taken back.

A front that does not read its answers holds up the others for ``PATIENCE_S``, once; then its
answers are dropped and counted until it reads again.
"""

from __future__ import annotations

import time

from lipsync_fast.engine.front_link import FrontLink, FrontLinks
from lipsync_fast.engine.job_queue import QueuedJob
from lipsync_fast.engine.picture_jobs import CachedPicture
from lipsync_fast.errors import RingError
from lipsync_fast.geometry import EMPTY, Rect
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.messages import Answer, Asked, Encode, Job, Status, send
from lipsync_fast.logs import get_logger

PATIENCE_S = 0.1
"""How long a full answer ring is waited for."""
log = get_logger("lipsync.engine")


class Answers:
    """Sends answers, and counts them in ``counts``."""

    def __init__(self, fronts: FrontLinks, counts: Load) -> None:
        self._fronts, self._counts = fronts, counts

    def made(self, entry: QueuedJob, jpeg: bytes, box: Rect) -> None:
        """Here is the picture."""
        self._counts.made += 1
        kept = isinstance(entry.picture, CachedPicture)
        self._send(
            entry.front, entry.job, Status.MADE, entry.taken_ns, box=box, jpeg=jpeg, kept=kept
        )

    def encoded(
        self, front: FrontLink, encode: Encode, taken_ns: int, unit: bytes, key: bool
    ) -> None:
        """Here is a stream's access unit."""
        self._counts.encoded += 1
        self._send(front, encode, Status.MADE, taken_ns, jpeg=unit, key=key)

    def skipped(self, front: FrontLink, job: Job, taken_ns: int) -> None:
        """It is, or would be, too late to be of use."""
        self._counts.skipped += 1
        self._send(front, job, Status.SKIPPED, taken_ns)

    def failed(self, front: FrontLink, job: Asked, taken_ns: int, reason: str) -> None:
        """It cannot be made."""
        self._counts.failed += 1
        self._send(front, job, Status.FAILED, taken_ns, reason=reason[:500])

    def _send(
        self,
        front: FrontLink,
        job: Asked,
        status: Status,
        taken_ns: int,
        *,
        box: Rect = EMPTY,
        reason: str = "",
        jpeg: bytes = b"",
        kept: bool = False,
        key: bool = False,
    ) -> None:
        if not self._fronts.serves(front):
            return  # it has gone
        made_ns = time.monotonic_ns()
        answer = Answer(
            job.session, job.epoch, job.number, status, box, reason, taken_ns, made_ns, kept, key
        )
        try:
            sent = send(front.answers, answer, jpeg, 0.0 if front.stuck else PATIENCE_S)
        except RingError as error:
            self._fronts.give_up(front, error)
            return
        except ValueError:
            reason = f"a picture of {len(jpeg)} bytes: more than a ring has"
            self.failed(front, job, taken_ns, reason)
            return
        if not sent:
            if not front.stuck:
                log.error("answers are not read; they are dropped", front=front.name)
            self._counts.dropped += 1
        front.stuck = not sent
