# SPDX-License-Identifier: Apache-2.0
"""The engine's one loop: jobs from all fronts, earliest deadline first, to encoded pictures.

    job rings ─► intake ─► queues, by deadline
                              │ dispatch: as many as keep the device busy
                              ▼
    answer rings ◄─ answers, as each is done ◄── network, compose, encode (the backend's threads)

Every job that is taken gets one answer: made, skipped (its deadline has passed), or failed (with
the reason); but for those that a later record took back.

The engine keeps caches and no truth: killed at any moment, it owes answers to jobs that another
engine can take as they are.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

from lipsync_fast.engine.answers import Answers
from lipsync_fast.engine.avatar_registry import AvatarRegistry
from lipsync_fast.engine.backends.base import Backend
from lipsync_fast.engine.dispatch import Dispatcher
from lipsync_fast.engine.frame_cache import FrameCache
from lipsync_fast.engine.front_link import FrontLink, FrontLinks
from lipsync_fast.engine.intake import JobIntake
from lipsync_fast.engine.picture_jobs import Pictures
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.engine.streams import Streams, encoding_threads
from lipsync_fast.engine.warmup import SELDOM_S
from lipsync_fast.errors import LipsyncError
from lipsync_fast.ipc.control import Load
from lipsync_fast.logs import get_logger
from lipsync_fast.media.h264 import encoder_name

log = get_logger("lipsync.engine")


class Scheduler:
    """Makes pictures with one backend for any number of fronts. All methods: one thread.

    Args:
        backend: where networks run; closed by ``close``.
        encoder: makes JPEGs.
        cache: frames that are kept; closed by ``close``.

    Attributes:
        fronts: who is served.
        registry: the avatars that jobs may name.
        counts: what was done since the beginning.
    """

    def __init__(
        self, backend: Backend, encoder: FrameEncoder, cache: FrameCache | None = None
    ) -> None:
        self.backend, self.encoder, self.cache = backend, encoder, cache
        self.counts = Load()
        self.fronts = FrontLinks(self._forget)
        self.registry = AvatarRegistry(backend, encoder, self._wake)
        answers = Answers(self.fronts, self.counts)
        self.dispatcher = Dispatcher(
            backend, Pictures(encoder), self.registry, cache, answers, self.counts, self._wake
        )
        self._answers = answers
        self.streams = Streams(
            encoder,
            encoding_threads(backend.threads),
            backend.cpu_time,
            self.registry.hold,
            self.registry.release,
            self._wake,
            encoder_name(gpu=backend.threads is None),
        )
        self.registry.on_closed = self.streams.pictures.forget
        self.intake = JobIntake(
            self.fronts, self.registry, cache, self.dispatcher, answers, self.counts, self.streams
        )
        self._doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _wake(self) -> None:  # in any thread
        os.eventfd_write(self._doorbell, 1)

    def _forget(self, front: FrontLink) -> None:
        """A front has gone: nobody waits for its jobs."""
        self.dispatcher.drop(lambda entry: entry.front is front)
        self.streams.end(front)

    # ------------------------------------------------------------ what there is to do
    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being made."""
        return not (self.waiting or self.in_flight)

    @property
    def waiting(self) -> int:
        """Jobs taken and not begun."""
        return len(self.dispatcher.spoken) + len(self.dispatcher.own)

    @property
    def in_flight(self) -> int:
        """Jobs begun and not answered."""
        return self.dispatcher.making + self.dispatcher.fetching + self.streams.in_flight

    def load_now(self) -> Load:
        """What is to be done now, with all counts since the beginning."""
        now, c, cache = time.monotonic_ns(), self.counts, self.cache
        avatar_bytes, avatar_shared = self.registry.cached_bytes()
        used, total = self.backend.device_memory
        taken = (self.dispatcher.spoken.oldest_ns, self.dispatcher.own.oldest_ns)
        oldest = min((ns for ns in taken if ns is not None), default=now)
        return Load(
            waiting=self.waiting,
            in_flight=self.in_flight,
            made=c.made,
            skipped=c.skipped,
            failed=c.failed,
            dropped=c.dropped,
            damaged=c.damaged,
            inferences=c.inferences,
            store={} if cache is None else cache.counts,
            store_bytes=0 if cache is None else cache.write_behind.store_bytes,
            oldest_ms=(now - oldest) / 1e6,
            encoded=c.encoded,
            encodes_per_s=self.streams.frames_per_s,
            cache_bytes=self.backend.cache_bytes
            | self.encoder.cache_bytes
            | self.streams.pictures.cache_bytes,
            spent_s=self.backend.cpu_time.seconds,
            queue_time=self.dispatcher.queue_time.durations,
            frame_time=self.dispatcher.frame_time.ever.durations,
            stages=self.backend.cpu_time.stages,
            device_memory_used=used,
            device_memory_total=total,
            avatar_bytes=avatar_bytes,
            avatar_shared=avatar_shared,
        )

    # ------------------------------------------------------------ the loop
    def step(self) -> bool:
        """Do what can be done now; False when there was nothing to do.

        Raises:
            DeviceLostError: no more frames can be made in this process. Jobs that are not answered
                are for another engine.
        """
        cpu_time = self.backend.cpu_time
        with cpu_time.on("answers out"):
            answered = self.dispatcher.finish() | self._answer_streams()
        self.registry.step()
        with cpu_time.on("jobs in"):
            taken = self.intake.take()
            begun = self.dispatcher.begin()
        return begun or taken or answered

    def _answer_streams(self) -> bool:
        """Answer what was encoded."""
        taken = self.streams.taken()
        for done in taken:
            front, encode, at = done.wanted.front, done.wanted.encode, done.wanted.taken_ns
            if done.error is None:
                self._answers.encoded(front, encode, at, done.unit, done.key)
                continue
            reason = " ".join((str(done.error) or repr(done.error)).split())
            if not isinstance(done.error, (LipsyncError, ValueError)):
                log.error("a picture cannot be encoded", reason=reason[:300])
            self._answers.failed(front, encode, at, reason)
        return bool(taken)

    def doorbells(self) -> list[int]:
        """Descriptors that become readable once ``may_sleep`` was true and ``step`` has work."""
        return [self._doorbell, *self.fronts.doorbells]

    def may_sleep(self) -> bool:
        """Ask to be woken. False when there is something to do already: then do not sleep."""
        if self.dispatcher.has_news or self.registry.has_news or self.streams.has_news:
            return False
        return self.fronts.ask_for_doorbells()

    def drain(self) -> None:
        """Read the doorbells empty."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._doorbell)
        self.fronts.drain()

    def warm(self) -> float:
        """With nothing else to do, begin to prepare one frame of an avatar.

        So a job that comes meanwhile is held up by one frame's preparation at most.

        Returns:
            Seconds after which to call again.
        """
        return self.registry.warm() if self.idle else SELDOM_S

    def sleep(self, timeout_s: float) -> None:
        """Wait until there is something to do, or for so long (for tests and small programs)."""
        if self.may_sleep():
            poll = select.poll()
            for fd in self.doorbells():
                poll.register(fd, select.POLLIN)
            poll.poll(int(timeout_s * 1000))
        self.drain()

    def close(self) -> None:
        """Stop the threads and close all; jobs that have not ended get no answer."""
        self.dispatcher.close()
        self.streams.close()
        if self.cache is not None:
            self.cache.close()
        self.registry.close()
        self.backend.close()
        self.fronts.close()
        os.close(self._doorbell)
