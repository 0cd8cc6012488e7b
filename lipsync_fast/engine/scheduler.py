# SPDX-License-Identifier: Apache-2.0
"""The engine's one loop: jobs from all fronts, earliest deadline first, to encoded pictures.

    job rings ─► take ─► waiting, by deadline
                            │ begin: as many as keep the device busy; audio block, then
                            ▼
    answer rings ◄─ answer, as each is done ◄── network, compose, encode (the backend's threads)

Every job that is taken gets one answer: made, skipped (its deadline has passed), or failed (with
the reason); but for those that a later record took back. A front that does not read its answers
holds up the others for ``PATIENCE_S``, once; then its answers are dropped and counted until it
reads again.

The engine keeps caches and no truth: killed at any moment, it owes answers to jobs that another
engine can take as they are.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.engine.avatar_registry import SELDOM_S, Shelf
from lipsync_fast.engine.backends.base import Backend, Coded, RegionJob, Sound
from lipsync_fast.engine.frame_cache import KnownFrames
from lipsync_fast.engine.front_link import FrontLink
from lipsync_fast.engine.picture_jobs import (
    CachedPicture,
    Made,
    OwnPicture,
    Pictures,
    Served,
    SpokenPicture,
    Waiting,
)
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.errors import DeviceLostError, LipsyncError, MessageError, RingError
from lipsync_fast.geometry import EMPTY, Rect
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.messages import (
    Answer,
    Cancel,
    Job,
    Status,
    StoreMode,
    read_job,
    samples_of,
    send,
)
from lipsync_fast.ipc.ring import RingHandle
from lipsync_fast.logs import get_logger

PATIENCE_S = 0.1
"""How long a full answer ring is waited for."""
MOST_WAITING = 512
"""Jobs of a front that are taken and not begun; more wait in its ring (some 40 kB each here)."""
HASTE_S = 0.003
"""Spent on the audio of some jobs before they are given out, and others wait for the next step."""
OWN_AT_A_TIME = 2
"""Avatars' own pictures that are being fetched or encoded."""

SPREAD, ON_THE_WAY_NS = 1.5, 2_000_000
"""A job is skipped when frames that take this many times their usual deviation longer than usual,
and so long to their front, would be late."""
FORGET, MOST_TAKES_NS = 0.95, 1_000_000_000

log = get_logger("lipsync.engine")
Prepared = tuple[Waiting, RegionJob, Callable[[NDArray[np.uint8] | Coded], Made]]
Finished = tuple[Waiting, "Future[Made]"]


class Engine:
    """Makes pictures with one backend for any number of fronts. All methods: one thread.

    Args:
        backend: where networks run; closed by ``close``.
        encoder: makes JPEGs.
        known: frames that are kept; closed by ``close``.
    """

    def __init__(
        self, backend: Backend, encoder: FrameEncoder, known: KnownFrames | None = None
    ) -> None:
        self.backend, self.encoder, self.known = backend, encoder, known
        self.counts = Load()
        self.lanes: dict[str, FrontLink] = {}
        self._pictures = Pictures(encoder)
        self.shelf = Shelf(backend, self._pictures, self._wake)
        self._spoken: list[Waiting] = []
        self._own: list[Waiting] = []
        self._arrivals = itertools.count()
        self._making = self._fetching = 0
        self._finished: deque[Finished] = deque()
        self._took: deque[int] = deque()
        self._takes_ns = self._spread_ns = 0.0
        """From a frame's beginning to its end, lately; and how far single ones are from that."""
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fetchers = ThreadPoolExecutor(1, "lipsync-own")

    def _wake(self) -> None:  # in any thread
        os.eventfd_write(self._bell, 1)

    # ------------------------------------------------------------ who is served
    def attach(self, name: str, jobs: RingHandle, answers: RingHandle) -> None:
        """Serve a front; the handles are closed when it is detached, or at once on an error.

        One of the same name is replaced: it has died, its jobs are void.

        Raises:
            RingError: they are no rings.
        """
        self.detach(name)
        try:
            self.lanes[name] = FrontLink(name, jobs, answers)
        except RingError:
            jobs.close()
            answers.close()
            raise

    def detach(self, name: str) -> None:
        """Forget a front and what it waits for."""
        lane = self.lanes.pop(name, None)
        if lane is not None:
            self._drop(lambda entry: entry.lane is lane)
            lane.close()

    # ------------------------------------------------------------ the loop
    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being made."""
        return not (self.waiting or self.in_flight)

    @property
    def waiting(self) -> int:
        """Jobs taken and not begun."""
        return len(self._spoken) + len(self._own)

    @property
    def in_flight(self) -> int:
        """Jobs begun and not answered."""
        return self._making + self._fetching

    def load_now(self) -> Load:
        """What is to be done now, with all counts since the beginning."""
        now, c = time.monotonic_ns(), self.counts
        avatar_bytes, avatar_shared = self.shelf.held()
        used, total = self.backend.device_memory
        oldest = min((e.taken_ns for e in (*self._spoken, *self._own)), default=now)
        return Load(
            waiting=self.waiting,
            in_flight=self.in_flight,
            made=c.made,
            skipped=c.skipped,
            failed=c.failed,
            dropped=c.dropped,
            damaged=c.damaged,
            inferences=c.inferences,
            store={} if self.known is None else self.known.counts,
            store_bytes=0 if self.known is None else self.known.keeper.store_bytes,
            oldest_ms=(now - oldest) / 1e6,
            cache_bytes=self.backend.cache_bytes | self.encoder.cache_bytes,
            spent_s=self.backend.spent.seconds,
            device_memory_used=used,
            device_memory_total=total,
            avatar_bytes=avatar_bytes,
            avatar_shared=avatar_shared,
        )

    def step(self) -> bool:
        """Do what can be done now; False when there was nothing to do.

        Raises:
            DeviceLostError: no more frames can be made in this process. Jobs that are not answered
                are for another engine.
        """
        spent = self.backend.spent
        with spent.on("answers out"):
            answered = self._answer()
        self.shelf.step()
        with spent.on("jobs in"):
            taken = self._take()
            begun = self._begin()
        return begun or taken or answered

    def bells(self) -> list[int]:
        """Descriptors that become readable when ``step`` has something to do after ``want``."""
        return [self._bell, *(lane.jobs.bell for lane in self.lanes.values())]

    def want(self) -> bool:
        """Ask to be woken. False when there is something to do already: then do not sleep."""
        if self._finished or self.shelf.has_news:
            return False
        # Of a front with enough jobs here, no more are wanted; it is the backend that rings then.
        open_lanes = [lane for lane in self.lanes.values() if lane.waiting < MOST_WAITING]
        return all(lane.jobs.want_data() for lane in open_lanes)

    def hear(self) -> None:
        """Forget the ringing up to now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        for lane in self.lanes.values():
            lane.jobs.hear()

    def warm(self) -> float:
        """With nothing else to do, begin to prepare one frame of an avatar.

        So a job that comes meanwhile is held up by one frame's preparation at most.

        Returns:
            Seconds after which to call again.
        """
        return self.shelf.warm() if self.idle else SELDOM_S

    def sleep(self, timeout_s: float) -> None:
        """Wait until there is something to do, or for so long (for tests and small programs)."""
        if self.want():
            poll = select.poll()
            for fd in self.bells():
                poll.register(fd, select.POLLIN)
            poll.poll(int(timeout_s * 1000))
        self.hear()

    # ------------------------------------------------------------ take
    def _take(self) -> bool:
        """Read jobs, one of each ring in turn."""
        any_taken = False
        lanes = list(self.lanes.values())
        while lanes:
            for lane in list(lanes):
                try:
                    took = self._is_served(lane) and self._take_one(lane)
                except RingError as error:
                    log.error("rings are given up", front=lane.name, reason=str(error))
                    self.detach(lane.name)
                    took = False
                any_taken |= took
                if not took:
                    lanes.remove(lane)
        return any_taken

    def _take_one(self, lane: FrontLink) -> bool:
        record = None if lane.waiting >= MOST_WAITING else lane.jobs.next()
        if record is None:
            return False
        self._admit(lane, record)
        if self._is_served(lane):  # answering it may have shown that its rings are of no use
            lane.jobs.release()
        return True

    def _is_served(self, lane: FrontLink) -> bool:
        return self.lanes.get(lane.name) is lane

    def _admit(self, lane: FrontLink, record: memoryview) -> None:
        try:
            job, payload = read_job(record)
            if isinstance(job, Cancel):
                self._cancel(lane, job)
                return
            picture = _wanted(job, payload)
        except MessageError as error:
            self.counts.damaged += 1
            log.warning("damaged job", front=lane.name, reason=str(error))
            return
        now = time.monotonic_ns()
        avatar = self.shelf.served.get(job.avatar)
        if avatar is None:
            self._fail(lane, job, now, f"avatar {job.avatar!r} is not loaded")
        elif job.avatar_frame >= (count := avatar.package.manifest.frame_count):
            self._fail(lane, job, now, f"picture {job.avatar_frame} of {count}")
        elif now > job.deadline_ns:
            self._skip(lane, job, now)
        else:
            self._enqueue(lane, job, avatar, picture, now)

    def _enqueue(
        self,
        lane: FrontLink,
        job: Job,
        avatar: Served,
        picture: OwnPicture | SpokenPicture,
        now: int,
    ) -> None:
        arrival = next(self._arrivals)
        self.shelf.hold(avatar)
        found = self._look_up(job, avatar, picture)
        if found is not None:  # it is only put into its picture
            self._fetching += 1
            entry = Waiting(job.deadline_ns, arrival, lane, job, avatar, CachedPicture(), now)
            self._follow(entry, found)
            return
        lane.waiting += 1
        heap = self._spoken if isinstance(picture, SpokenPicture) else self._own
        heapq.heappush(heap, Waiting(job.deadline_ns, arrival, lane, job, avatar, picture, now))

    def _look_up(
        self, job: Job, avatar: Served, picture: OwnPicture | SpokenPicture
    ) -> Future[Made] | None:
        """A job's frame, where it is to be looked for and is kept."""
        if self.known is None or isinstance(picture, OwnPicture):
            return None
        if picture.speech.store != StoreMode.LOOK_UP:
            return None
        return self.known.find(avatar, job, picture)

    def _cancel(self, lane: FrontLink, record: Cancel) -> None:
        session, epoch = record.session, record.epoch
        self._drop(lambda e: e.lane is lane and e.job.session == session and e.job.epoch < epoch)

    def _drop(self, unwanted: Callable[[Waiting], bool]) -> None:
        """Forget waiting jobs."""
        for heap in (self._spoken, self._own):
            kept = [entry for entry in heap if not unwanted(entry)]
            if len(kept) < len(heap):
                for entry in filter(unwanted, heap):
                    entry.lane.waiting -= 1
                    self.shelf.release(entry.avatar)
                heap[:] = kept
                heapq.heapify(heap)

    # ------------------------------------------------------------ begin
    def _begin(self) -> bool:
        """Give out as many jobs as keep the device busy, the most urgent first."""
        batch: list[Prepared] = []
        begun = time.monotonic()
        any_begun = False
        while self._due(self._spoken, self._making + len(batch) < self.backend.depth):
            entry = self._pop(self._spoken)
            any_begun = True
            try:
                batch.append(self._prepared(entry))
            except (LipsyncError, ValueError) as error:
                self._end(entry, error=str(error))
            if time.monotonic() - begun > HASTE_S:
                break  # there were many features to compute: the device is not to wait for more
        if batch:
            self._submit(batch)
        while self._due(self._own, self._fetching < OWN_AT_A_TIME):
            entry = self._pop(self._own)
            self._fetching += 1
            any_begun = True
            self._follow(entry, self._fetchers.submit(self._pictures.own, entry.avatar, entry.job))
        return any_begun

    def _prepared(self, entry: Waiting) -> Prepared:
        lane, avatar, picture = entry.lane.name, entry.avatar, entry.picture
        assert isinstance(picture, SpokenPicture)
        heard: NDArray[np.float32] | Sound
        if self.backend.hears:
            heard = avatar.sound(lane, picture)
        else:
            with self.backend.spent.on("mel"):
                heard = avatar.block(lane, picture)
        share, encodes = picture.speech.share, self.backend.encodes
        return entry, *self._pictures.spoken(avatar, entry.job, share, heard, encodes)

    def _submit(self, batch: list[Prepared]) -> None:
        def finish(place: int, image: NDArray[np.uint8] | Coded) -> Made:
            with self.backend.spent.on("JPEG"):
                return batch[place][2](image)

        futures = self.backend.submit([job for _, job, _ in batch], finish)
        self._making += len(batch)
        for (entry, _, _), future in zip(batch, futures, strict=True):
            self._follow(entry, future)

    def _due(self, heap: list[Waiting], room: bool) -> bool:
        """Whether a job is to begin; those that are late, or would be, are answered first.

        One that would be done just behind its deadline helps nobody, and makes the next one late.
        """
        now = time.monotonic_ns()
        takes = self._expected_ns() if heap is self._spoken else 0
        while heap and now + takes > heap[0].deadline_ns:
            if takes:  # so that one slow moment is not believed for ever
                self._takes_ns *= FORGET
                self._spread_ns *= FORGET
                takes = self._expected_ns()
            entry = self._pop(heap)
            self._skip(entry.lane, entry.job, entry.taken_ns)
            self.shelf.release(entry.avatar)
        return bool(heap) and room

    def _expected_ns(self) -> int:
        """How long a frame that begins now may take to reach its front; 0 before the first one."""
        if not self._takes_ns:
            return 0
        return int(self._takes_ns + SPREAD * self._spread_ns) + ON_THE_WAY_NS

    @staticmethod
    def _pop(heap: list[Waiting]) -> Waiting:
        entry = heapq.heappop(heap)
        entry.lane.waiting -= 1
        return entry

    def _follow(self, entry: Waiting, future: Future[Made]) -> None:
        begun = time.monotonic_ns()

        def done(future: Future[Made]) -> None:  # in the thread that made it
            if isinstance(entry.picture, SpokenPicture):
                self._took.append(time.monotonic_ns() - begun)
            self._finished.append((entry, future))
            self._wake()

        future.add_done_callback(done)

    # ------------------------------------------------------------ answer
    def _answer(self) -> bool:
        """Send what is done."""
        any_sent = False
        while self._took:
            off = min(self._took.popleft(), MOST_TAKES_NS) - self._takes_ns
            self._takes_ns += off / 8
            self._spread_ns += (abs(off) - self._spread_ns) / 8
        while self._finished:
            entry, future = self._finished.popleft()
            any_sent = True
            if isinstance(entry.picture, SpokenPicture):
                self._making -= 1
            else:
                self._fetching -= 1
            error = future.exception()
            if error is None:
                self._made(entry, future.result()[0])
                self._end(entry, *future.result())
                continue
            if isinstance(error, DeviceLostError):
                raise error
            if not isinstance(error, LipsyncError):
                log.error("a frame has failed", avatar_frame=entry.job.avatar_frame, exc_info=error)
            self._end(entry, error=str(error) or repr(error))
        return any_sent

    def _made(self, entry: Waiting, jpeg: bytes) -> None:
        """Count what a network has made, and keep it if that is wanted."""
        picture = entry.picture
        if not isinstance(picture, SpokenPicture):
            return
        self.counts.inferences += 1
        if self.known is not None and picture.speech.store != StoreMode.OFF:
            self.known.keep(entry, picture, jpeg)

    def _end(self, entry: Waiting, jpeg: bytes = b"", box: Rect = EMPTY, error: str = "") -> None:
        """Answer a job that had begun."""
        self.shelf.release(entry.avatar)
        if error:
            self._fail(entry.lane, entry.job, entry.taken_ns, error)
            return
        self.counts.made += 1
        kept = isinstance(entry.picture, CachedPicture)
        self._send(
            entry.lane, entry.job, Status.MADE, entry.taken_ns, box=box, jpeg=jpeg, kept=kept
        )

    def _skip(self, lane: FrontLink, job: Job, taken_ns: int) -> None:
        self.counts.skipped += 1
        self._send(lane, job, Status.SKIPPED, taken_ns)

    def _fail(self, lane: FrontLink, job: Job, taken_ns: int, reason: str) -> None:
        self.counts.failed += 1
        self._send(lane, job, Status.FAILED, taken_ns, reason=reason[:500])

    def _send(
        self,
        lane: FrontLink,
        job: Job,
        status: Status,
        taken_ns: int,
        *,
        box: Rect = EMPTY,
        reason: str = "",
        jpeg: bytes = b"",
        kept: bool = False,
    ) -> None:
        if not self._is_served(lane):
            return  # its front has gone
        made_ns = time.monotonic_ns()
        answer = Answer(
            job.session, job.epoch, job.number, status, box, reason, taken_ns, made_ns, kept
        )
        try:
            sent = send(lane.answers, answer, jpeg, 0.0 if lane.stuck else PATIENCE_S)
        except RingError as error:
            log.error("rings are given up", front=lane.name, reason=str(error))
            self.detach(lane.name)
            return
        except ValueError:
            self._fail(lane, job, taken_ns, f"a picture of {len(jpeg)} bytes: more than a ring has")
            return
        if not sent:
            if not lane.stuck:
                log.error("answers are not read; they are dropped", front=lane.name)
            self.counts.dropped += 1
        lane.stuck = not sent

    def close(self) -> None:
        """Stop the threads and close all; jobs that have not ended get no answer."""
        self._fetchers.shutdown(wait=True, cancel_futures=True)
        if self.known is not None:
            self.known.close()
        self.shelf.close()
        self.backend.close()
        for lane in self.lanes.values():
            lane.close()
        self.lanes.clear()
        os.close(self._bell)


def _wanted(job: Job, payload: memoryview) -> OwnPicture | SpokenPicture:
    """The picture that a job asks for.

    Raises:
        MessageError: its payload is no sound.
    """
    if job.speech is None:
        return OwnPicture()
    # A copy: the ring's room is for what has not been seen yet.
    return SpokenPicture(job.speech, samples_of(payload).copy())
