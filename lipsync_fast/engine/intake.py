# SPDX-License-Identifier: Apache-2.0
"""Takes jobs from all fronts' rings, one of each in turn, into the queues.

A job that cannot be is answered at once; one that may be among the kept frames is looked for there
first.
"""

from __future__ import annotations

import itertools
import time

import numpy as np

from lipsync_fast.engine.answers import Answers
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.avatar_registry import AvatarRegistry
from lipsync_fast.engine.dispatch import Dispatcher
from lipsync_fast.engine.frame_cache import FrameCache
from lipsync_fast.engine.front_link import FrontLink, FrontLinks
from lipsync_fast.engine.job_queue import QueuedJob
from lipsync_fast.engine.picture_jobs import CachedPicture, OwnPicture, SpokenPicture
from lipsync_fast.engine.streams import Streams, Wanted
from lipsync_fast.errors import MessageError, RingError
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.messages import (
    Asked,
    Cancel,
    Encode,
    EndStream,
    Job,
    StoreMode,
    read_job,
    samples_of,
)
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")


class JobIntake:
    """Reads jobs and cancellations; see the module."""

    def __init__(
        self,
        fronts: FrontLinks,
        registry: AvatarRegistry,
        cache: FrameCache | None,
        dispatcher: Dispatcher,
        answers: Answers,
        counts: Load,
        streams: Streams,
    ) -> None:
        self._streams = streams
        self._fronts, self._registry, self._cache = fronts, registry, cache
        self._dispatcher, self._answers, self._counts = dispatcher, answers, counts
        self._arrivals = itertools.count()

    def take(self) -> bool:
        """Take what has come, as much as may wait; False where that is nothing."""
        any_taken = False
        fronts = self._fronts.all()
        while fronts:
            for front in list(fronts):
                try:
                    took = self._fronts.serves(front) and self._take_one(front)
                except RingError as error:
                    self._fronts.give_up(front, error)
                    took = False
                any_taken |= took
                if not took:
                    fronts.remove(front)
        return any_taken

    def _take_one(self, front: FrontLink) -> bool:
        record = front.next_job()
        if record is None:
            return False
        self._admit(front, record)
        if self._fronts.serves(front):  # answering it may have shown that its rings are of no use
            front.jobs.release()
        return True

    def _admit(self, front: FrontLink, record: memoryview) -> None:
        try:
            job, payload = read_job(record)
            if isinstance(job, Cancel):
                self._cancel(front, job)
                return
            if isinstance(job, EndStream):
                self._streams.end(front, job.session)
                return
            if isinstance(job, Encode):
                self._encode(front, job, payload)
                return
            picture = _wanted(job, payload)
        except MessageError as error:
            self._counts.damaged += 1
            log.warning("damaged job", front=front.name, reason=str(error))
            return
        now = time.monotonic_ns()
        avatar = self._known(front, job, now)
        if avatar is None:
            return
        if now > job.deadline_ns:
            self._answers.skipped(front, job, now)
        else:
            self._enqueue(front, job, avatar, picture, now)

    def _known(self, front: FrontLink, job: Asked, now: int) -> RegisteredAvatar | None:
        """The avatar that a job names; None where it, or its frame, is not there: that is told."""
        avatar = self._registry.avatars.get(job.avatar)
        if avatar is None:
            self._answers.failed(front, job, now, f"avatar {job.avatar!r} is not loaded")
        elif job.avatar_frame >= (count := avatar.package.manifest.frame_count):
            self._answers.failed(front, job, now, f"picture {job.avatar_frame} of {count}")
            return None
        return avatar

    def _encode(self, front: FrontLink, encode: Encode, payload: memoryview) -> None:
        """The next picture of a stream."""
        now = time.monotonic_ns()
        avatar = self._known(front, encode, now)
        if avatar is None:
            return
        # A copy, as of a job's sound.
        part = np.frombuffer(bytes(payload), np.uint8) if len(payload) else None
        if not self._streams.push(Wanted(front, encode, avatar, part, now)):
            self._answers.failed(front, encode, now, "too many pictures of the stream wait")

    def _enqueue(
        self,
        front: FrontLink,
        job: Job,
        avatar: RegisteredAvatar,
        picture: OwnPicture | SpokenPicture,
        now: int,
    ) -> None:
        """Have a picture made, or taken from the frames that are kept."""
        arrival, deadline = next(self._arrivals), job.deadline_ns
        self._registry.hold(avatar)
        if self._cache is not None and isinstance(picture, SpokenPicture):
            looked_for = picture.speech.store == StoreMode.LOOK_UP
            found = self._cache.find(avatar, job, picture) if looked_for else None
            if found is not None:  # it is only put into its picture
                cached = CachedPicture()
                entry = QueuedJob(deadline, arrival, front, job, avatar, cached, now)
                self._dispatcher.follow(entry, found)
                return
        self._dispatcher.push(QueuedJob(deadline, arrival, front, job, avatar, picture, now))

    def _cancel(self, front: FrontLink, cancel: Cancel) -> None:
        session, epoch = cancel.session, cancel.epoch
        self._dispatcher.drop(
            lambda e: e.front is front and e.job.session == session and e.job.epoch < epoch
        )


def _wanted(job: Job, payload: memoryview) -> OwnPicture | SpokenPicture:
    """The picture that a job asks for.

    Raises:
        MessageError: its payload is no sound.
    """
    if job.speech is None:
        return OwnPicture()
    # A copy: the ring's room is for what has not been seen yet.
    return SpokenPicture(job.speech, samples_of(payload).copy())
