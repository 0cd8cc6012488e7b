# SPDX-License-Identifier: Apache-2.0
"""Gives jobs to the backend, the most urgent first, and sees each to its answer.

queues ─► begin: as many as keep the device busy; audio block, then
             network, compose, encode (the backend's threads) ─► finish ─► answers
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.engine.answers import Answers
from lipsync_fast.engine.avatar_registry import AvatarRegistry
from lipsync_fast.engine.backends.base import Backend, Coded, RegionJob, Sound
from lipsync_fast.engine.frame_cache import FrameCache
from lipsync_fast.engine.frame_time import FrameTime
from lipsync_fast.engine.job_queue import JobQueue, QueuedJob
from lipsync_fast.engine.picture_jobs import Made, Pictures, SpokenPicture
from lipsync_fast.errors import DeviceLostError, LipsyncError
from lipsync_fast.histograms import SHORT, Histogram
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.messages import StoreMode
from lipsync_fast.logs import get_logger

HASTE_S = 0.003
"""Spent on the audio of some jobs before they are given out, and others wait for the next step."""
OWN_AT_A_TIME = 2
"""Avatars' own pictures that are being fetched or encoded."""
log = get_logger("lipsync.engine")
Prepared = tuple[QueuedJob, RegionJob, Callable[[NDArray[np.uint8] | Coded], Made]]
Finished = tuple[QueuedJob, "Future[Made]"]


class Dispatcher:
    """From queued jobs to answers. For one thread; ``wake`` is called in others.

    Args:
        backend: where networks run.
        pictures: what is to be made of a job.
        registry: avatars are released there when their jobs have ended.
        cache: frames that are kept, where any are.
        answers: where what is done goes.
        counts: of inferences.
        wake: called when ``finish`` has something to do.
    """

    def __init__(
        self,
        backend: Backend,
        pictures: Pictures,
        registry: AvatarRegistry,
        cache: FrameCache | None,
        answers: Answers,
        counts: Load,
        wake: Callable[[], None],
    ) -> None:
        self._backend, self._pictures, self._registry = backend, pictures, registry
        self._cache, self._answers, self._counts, self._wake = cache, answers, counts, wake
        self.spoken, self.own = JobQueue(), JobQueue()
        self.making = self.fetching = 0
        """Jobs begun and not answered: by the backend; by the fetching thread and the cache's."""
        self.frame_time, self.queue_time = FrameTime(), Histogram(SHORT)
        """Of spoken frames that were begun: how long they took, and how long they had waited."""
        self._finished: deque[Finished] = deque()
        self._fetchers = ThreadPoolExecutor(1, "lipsync-own")

    @property
    def has_news(self) -> bool:
        """Whether ``finish`` has something to do."""
        return bool(self._finished)

    # ------------------------------------------------------------ the queues
    def push(self, entry: QueuedJob) -> None:
        """Have a picture made."""
        (self.spoken if isinstance(entry.picture, SpokenPicture) else self.own).push(entry)

    def drop(self, unwanted: Callable[[QueuedJob], bool]) -> None:
        """Forget jobs that have not begun."""
        for queue in (self.spoken, self.own):
            for entry in queue.drop(unwanted):
                self._registry.release(entry.avatar)

    # ------------------------------------------------------------ begin
    def begin(self) -> bool:
        """Give out as many jobs as keep the device busy, the most urgent first."""
        batch: list[Prepared] = []
        begun = time.monotonic()
        any_begun = False
        while self._due(self.spoken, self.making + len(batch) < self._backend.depth):
            entry = self.spoken.pop()
            self.queue_time.add((time.monotonic_ns() - entry.taken_ns) / 1e9)
            any_begun = True
            try:
                batch.append(self._prepared(entry))
            except DeviceLostError:
                raise
            except Exception as error:
                self._fail_for(entry, error)
            if time.monotonic() - begun > HASTE_S:
                break  # there were many features to compute: the device is not to wait for more
        if batch:
            self._submit(batch)
        while self._due(self.own, self.fetching < OWN_AT_A_TIME):
            entry = self.own.pop()
            any_begun = True
            self.follow(entry, self._fetchers.submit(self._pictures.own, entry.avatar, entry.job))
        return any_begun

    def _due(self, queue: JobQueue, room: bool) -> bool:
        """Whether a job is to begin; those that are late, or would be, are answered first.

        One that would be done just behind its deadline helps nobody, and makes the next one late.
        """
        now = time.monotonic_ns()
        takes = self.frame_time.expected_ns if queue is self.spoken else 0
        while (first := queue.first) is not None and now + takes > first.deadline_ns:
            if takes:
                self.frame_time.forget()
                takes = self.frame_time.expected_ns
            entry = queue.pop()
            self._answers.skipped(entry.front, entry.job, entry.taken_ns)
            self._registry.release(entry.avatar)
        return room and first is not None

    def _prepared(self, entry: QueuedJob) -> Prepared:
        front, avatar, picture = entry.front.name, entry.avatar, entry.picture
        assert isinstance(picture, SpokenPicture)
        audio: NDArray[np.float32] | Sound
        if self._backend.takes_sound:
            audio = avatar.sound(front, picture.speech, picture.pcm)
        else:
            with self._backend.cpu_time.on("mel"):
                audio = avatar.audio_block(front, picture.speech, picture.pcm)
        share, encodes = picture.speech.share, self._backend.encodes
        return entry, *self._pictures.spoken(avatar, entry.job, share, audio, encodes)

    def _submit(self, batch: list[Prepared]) -> None:
        def finish(number: int, image: NDArray[np.uint8] | Coded) -> Made:
            with self._backend.cpu_time.on("JPEG"):
                return batch[number][2](image)

        futures = self._backend.submit([job for _, job, _ in batch], finish)
        for (entry, _, _), future in zip(batch, futures, strict=True):
            self.follow(entry, future)

    def follow(self, entry: QueuedJob, future: Future[Made]) -> None:
        """A job has begun: ``finish`` answers it when it has ended."""
        begun = time.monotonic_ns()
        spoken = isinstance(entry.picture, SpokenPicture)
        if spoken:
            self.making += 1
        else:
            self.fetching += 1

        def done(future: Future[Made]) -> None:  # in the thread that made it
            if spoken:
                self.frame_time.took(time.monotonic_ns() - begun)
            self._finished.append((entry, future))
            self._wake()

        future.add_done_callback(done)

    # ------------------------------------------------------------ finish
    def finish(self) -> bool:
        """Answer what is done.

        Raises:
            DeviceLostError: no more frames can be made.
        """
        any_sent = False
        self.frame_time.update()
        while self._finished:
            entry, future = self._finished.popleft()
            any_sent = True
            if isinstance(entry.picture, SpokenPicture):
                self.making -= 1
            else:
                self.fetching -= 1
            error = future.exception()
            if error is None:
                jpeg, box = future.result()
                self._keep(entry, jpeg)
                self._registry.release(entry.avatar)
                self._answers.made(entry, jpeg, box)
                continue
            if isinstance(error, DeviceLostError):
                raise error
            self._fail_for(entry, error)
        return any_sent

    def _fail_for(self, entry: QueuedJob, error: BaseException) -> None:
        """Answer a job that had begun; what no sound avatar brings about counts against it."""
        reason = " ".join((str(error) or repr(error)).split())[:500]
        if not isinstance(error, (LipsyncError, ValueError)):
            log.error("a frame has failed", avatar_frame=entry.job.avatar_frame, exc_info=error)
            self._registry.failed(entry.avatar, reason)
        self._fail(entry, reason)

    def _keep(self, entry: QueuedJob, jpeg: bytes) -> None:
        """Count what a network has made, and keep it if that is wanted."""
        picture = entry.picture
        if not isinstance(picture, SpokenPicture):
            return
        self._counts.inferences += 1
        if self._cache is not None and picture.speech.store != StoreMode.OFF:
            self._cache.keep(entry, picture, jpeg)

    def _fail(self, entry: QueuedJob, reason: str) -> None:
        """Answer a job that had begun."""
        self._registry.release(entry.avatar)
        self._answers.failed(entry.front, entry.job, entry.taken_ns, reason)

    def close(self) -> None:
        """Stop the fetching thread; jobs that have not ended get no answer."""
        self._fetchers.shutdown(wait=True, cancel_futures=True)
