# SPDX-License-Identifier: Apache-2.0
"""The engine's one loop: jobs from all fronts, earliest deadline first, to encoded pictures.

    job rings ─► take: audio block from the job's samples ─► waiting, by deadline
                                                                 │ begin: as many as keep the
                                                                 ▼ device busy
    answer rings ◄─ answer, as each is done ◄── network, compose, encode (the backend's threads)

Every job that is taken gets one answer: made, skipped (its deadline has passed), or failed (with
the reason). A front that does not read its answers holds up the others for ``PATIENCE_S``, once;
then its answers are dropped and counted until it reads again.

The engine keeps caches and no truth: killed at any moment, it owes answers to jobs that another
engine can take as they are.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.windows import BlockCache, block_starts
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import Backend, LoadedAvatar, RegionJob
from lipsync_fast.engine.splice import FrameEncoder, Variant
from lipsync_fast.errors import LipsyncError
from lipsync_fast.ipc.messages import (
    Answer,
    Content,
    Job,
    MessageError,
    Status,
    read,
    samples_of,
    send,
)
from lipsync_fast.ipc.ring import RingReader, RingWriter

PATIENCE_S = 0.1
"""How long a full answer ring is waited for."""
MOST_WAITING = 512
"""Jobs taken and not begun; the others wait in their rings (32 kB each here)."""

log = logging.getLogger(__name__)
Box = tuple[int, int, int, int]


@dataclass
class Lane:
    """The two rings of a front."""

    name: str
    jobs: RingReader
    answers: RingWriter
    stuck: bool = False
    """It did not read when it was last waited for."""


@dataclass
class Counts:
    """What the engine has done since it began."""

    made: int = 0
    skipped: int = 0
    failed: int = 0
    dropped: int = 0
    """Answers that a front did not read."""
    damaged: int = 0
    """Records that were no jobs."""


@dataclass
class Served:
    """An avatar that jobs may name."""

    package: AvatarPackage
    loaded: LoadedAvatar
    blocks: BlockCache


@dataclass(order=True)
class Waiting:
    """A job with its audio block; ordered by deadline, then by arrival."""

    deadline_ns: int
    arrival: int
    lane: Lane = field(compare=False)
    job: Job = field(compare=False)
    avatar: Served = field(compare=False)
    block: NDArray[np.float32] | None = field(compare=False)
    taken_ns: int = field(compare=False)


Finished = tuple[Waiting, "Future[tuple[bytes, Box]]"]


class Engine:
    """Makes pictures with one backend for any number of fronts. All methods: one thread.

    Args:
        backend: where networks run; closed by ``close``.
        encoder: makes JPEGs.
    """

    def __init__(self, backend: Backend, encoder: FrameEncoder) -> None:
        self.backend, self.encoder = backend, encoder
        self.counts = Counts()
        self.lanes: dict[str, Lane] = {}
        self.avatars: dict[str, Served] = {}
        self._waiting: list[Waiting] = []
        self._arrivals = itertools.count()
        self._in_flight = 0
        self._finished: deque[Finished] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pictures = ThreadPoolExecutor(1, "lipsync-pictures")

    # ------------------------------------------------------------ who is served
    def attach(self, name: str, jobs: RingReader, answers: RingWriter) -> None:
        """Serve a front. One of the same name is replaced: it has died, its jobs are void."""
        self.detach(name)
        self.lanes[name] = Lane(name, jobs, answers)

    def detach(self, name: str) -> None:
        """Forget a front and what it waits for."""
        lane = self.lanes.pop(name, None)
        if lane is not None:
            self._waiting = [w for w in self._waiting if w.lane is not lane]
            heapq.heapify(self._waiting)

    def load(self, name: str, path: str | os.PathLike[str]) -> None:
        """Make an avatar available under ``name``; one of that name is replaced.

        Raises:
            AvatarError: it cannot be used.
        """
        package = AvatarPackage.open(Path(path))
        try:
            loaded = self.backend.load(package)
        except BaseException:
            package.close()
            raise
        features = lambda windows: self.backend.features(loaded, windows)  # noqa: E731
        self.avatars[name] = Served(package, loaded, BlockCache(features))

    def unload(self, name: str) -> None:
        """Jobs that name it fail from now on; those that have begun end well."""
        self.avatars.pop(name, None)

    # ------------------------------------------------------------ the loop
    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being made."""
        return not self._waiting and not self._in_flight and not self._finished

    @property
    def waiting(self) -> int:
        """Jobs taken and not begun."""
        return len(self._waiting)

    def step(self) -> bool:
        """Do what can be done now; False when there was nothing to do."""
        taken = self._take()
        begun = self._begin()
        return bool(self._answer()) or taken or begun

    def bells(self) -> list[int]:
        """Descriptors that become readable when ``step`` has something to do after ``want``."""
        return [self._bell, *(lane.jobs.bell for lane in self.lanes.values())]

    def want(self) -> bool:
        """Ask to be woken. False when there is something to do already: then do not sleep."""
        if self._finished:
            return False
        if len(self._waiting) >= MOST_WAITING:
            return True  # it is the backend that must ring
        wanted = [lane.jobs.want_data() for lane in self.lanes.values()]
        return all(wanted)

    def hear(self) -> None:
        """Forget the ringing up to now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        for lane in self.lanes.values():
            lane.jobs.hear()

    def sleep(self, timeout_s: float) -> None:
        """Wait until there is something to do, or for so long (for tests and small programs)."""
        if self.want():
            poll = select.poll()
            for fd in self.bells():
                poll.register(fd, select.POLLIN)
            poll.poll(int(timeout_s * 1000))
        self.hear()

    def _take(self) -> bool:
        """Read jobs, one of each ring in turn, and make their audio blocks."""
        any_taken = False
        lanes = list(self.lanes.values())
        while lanes and len(self._waiting) < MOST_WAITING:
            for lane in list(lanes):
                record = lane.jobs.next()
                if record is None:
                    lanes.remove(lane)
                    continue
                any_taken = True
                try:
                    self._admit(lane, record)
                finally:
                    lane.jobs.release()
        return any_taken

    def _admit(self, lane: Lane, record: memoryview) -> None:
        try:
            job, payload = read(record, Job)
        except MessageError as error:
            self.counts.damaged += 1
            log.warning("front %s: %s", lane.name, error)
            return
        now = time.monotonic_ns()
        avatar = self.avatars.get(job.avatar)
        if avatar is None:
            self._fail(lane, job, now, f"avatar {job.avatar!r} is not loaded")
            return
        if now > job.deadline_ns:
            self._skip(lane, job, now)
            return
        try:
            block = self._block(lane, job, avatar, payload)
        except (LipsyncError, ValueError) as error:
            self._fail(lane, job, now, str(error))
            return
        entry = Waiting(job.deadline_ns, next(self._arrivals), lane, job, avatar, block, now)
        heapq.heappush(self._waiting, entry)

    def _block(
        self, lane: Lane, job: Job, avatar: Served, payload: memoryview
    ) -> NDArray[np.float32] | None:
        speech, manifest = job.speech, avatar.package.manifest
        if job.picture >= manifest.frame_count:
            raise ValueError(f"picture {job.picture} of {manifest.frame_count}")
        if speech is None:
            return None
        starts = block_starts(speech.frame, manifest.audio, speech.samples)
        stream = (lane.name, speech.stream)
        return avatar.blocks.block(stream, starts, samples_of(payload), speech.first)

    def _begin(self) -> bool:
        """Give the backend as many jobs as keep it busy, the most urgent first."""
        batch: list[Waiting] = []
        now = time.monotonic_ns()
        while self._waiting and self._in_flight + len(batch) < self.backend.depth:
            entry = heapq.heappop(self._waiting)
            if now > entry.deadline_ns:
                self._skip(entry.lane, entry.job, entry.taken_ns)
            elif entry.block is None:
                self._in_flight += 1
                self._follow(entry, self._pictures.submit(self._picture, entry))
            else:
                batch.append(entry)
        if batch:
            jobs = [
                RegionJob(e.avatar.loaded, e.job.picture, e.block, e.job.speech.share)
                for e in batch
                if e.block is not None and e.job.speech is not None
            ]
            self._in_flight += len(batch)
            futures = self.backend.submit(jobs, lambda k, image: self._encode(batch[k], image))
            for entry, future in zip(batch, futures, strict=True):
                self._follow(entry, future)
        return bool(batch)

    def _follow(self, entry: Waiting, future: Future[tuple[bytes, Box]]) -> None:
        def done(future: Future[tuple[bytes, Box]]) -> None:  # in the thread that made it
            self._finished.append((entry, future))
            os.eventfd_write(self._bell, 1)

        future.add_done_callback(done)

    def _answer(self) -> int:
        """Send what is done."""
        count = 0
        while self._finished:
            entry, future = self._finished.popleft()
            self._in_flight -= 1
            count += 1
            error = future.exception()
            if error is not None:
                if not isinstance(error, LipsyncError):
                    log.error("frame %s failed", entry.job.picture, exc_info=error)
                self._fail(entry.lane, entry.job, entry.taken_ns, str(error) or repr(error))
                continue
            jpeg, box = future.result()
            self.counts.made += 1
            self._send(entry.lane, entry.job, Status.MADE, entry.taken_ns, box=box, jpeg=jpeg)
        return count

    # ------------------------------------------------------------ pictures
    def _variant(self, entry: Waiting) -> Variant:
        look, own = entry.job.look, entry.avatar.package.manifest.jpeg.quality
        return Variant(look.quality or own, look.max_width)

    def _encode(self, entry: Waiting, image: NDArray[np.uint8]) -> tuple[bytes, Box]:
        """A composed frame to what the client wants to see of it (in the backend's threads)."""
        package, index = entry.avatar.package, entry.job.picture
        if entry.job.look.content == Content.MOUTH:
            x1, y1, x2, y2 = package.rect(index)
            jpeg = self.encoder.mouth(package, index, image, self._variant(entry).quality)
            return jpeg, (x1, y1, x2 - x1, y2 - y1)
        variant = self._variant(entry)
        return self.encoder.frame(package, index, variant, image), (0, 0, *package.frame_size)

    def _picture(self, entry: Waiting) -> tuple[bytes, Box]:
        """The avatar's own picture."""
        package, index = entry.avatar.package, entry.job.picture
        if entry.job.look.content == Content.MOUTH:
            return self._encode(entry, package.picture(index))
        jpeg = self.encoder.original(package, index, self._variant(entry))
        return bytes(jpeg), (0, 0, *package.frame_size)

    # ------------------------------------------------------------ answers
    def _skip(self, lane: Lane, job: Job, taken_ns: int) -> None:
        self.counts.skipped += 1
        self._send(lane, job, Status.SKIPPED, taken_ns)

    def _fail(self, lane: Lane, job: Job, taken_ns: int, reason: str) -> None:
        self.counts.failed += 1
        self._send(lane, job, Status.FAILED, taken_ns, reason=reason[:500])

    def _send(
        self,
        lane: Lane,
        job: Job,
        status: Status,
        taken_ns: int,
        *,
        box: Box = (0, 0, 0, 0),
        reason: str = "",
        jpeg: bytes = b"",
    ) -> None:
        if self.lanes.get(lane.name) is not lane:
            return  # its front has gone
        made_ns = time.monotonic_ns()
        answer = Answer(job.session, job.epoch, job.number, status, box, reason, taken_ns, made_ns)
        if send(lane.answers, answer, memoryview(jpeg), 0.0 if lane.stuck else PATIENCE_S):
            lane.stuck = False
            return
        if not lane.stuck:
            log.error("front %s does not read its answers; dropping them", lane.name)
        lane.stuck = True
        self.counts.dropped += 1

    def close(self) -> None:
        """Stop the threads and close the avatars; jobs that have not ended get no answer."""
        self._pictures.shutdown(wait=True, cancel_futures=True)
        self.backend.close()
        for served in self.avatars.values():
            served.package.close()
        self.avatars.clear()
        os.close(self._bell)


def run(engine: Engine, stop: Callable[[], bool], nap_s: float = 0.05) -> None:
    """Work until ``stop`` says so."""
    while not stop():
        if not engine.step():
            engine.sleep(nap_s)
