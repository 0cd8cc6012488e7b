# SPDX-License-Identifier: Apache-2.0
"""What is got ready of avatars' frames before they are asked for, when nothing else is to do.

First what is small, of every avatar: an engine that is kept as a spare has it, too. What is large
only once the avatar is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.base import Backend
from lipsync_fast.engine.splice import FrameEncoder, Variant
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")
SELDOM_S = 1.0
RESTS = 2


class AvatarWarmup:
    """Gets frames ready in a thread, task by task. For one thread; ``wake`` is called in its own.

    Between two tasks, there is a rest of ``RESTS`` times what one took: another engine may be using
    the same processors for speech.
    """

    def __init__(self, backend: Backend, encoder: FrameEncoder, wake: Callable[[], None]) -> None:
        self._backend, self._encoder, self._wake = backend, encoder, wake
        self._thread = ThreadPoolExecutor(1, "lipsync-warmup")
        self._task: tuple[RegisteredAvatar, Future[None], float] | None = None
        self._rested_at = 0.0

    def start(self, avatars: Iterable[RegisteredAvatar]) -> float:
        """Begin a task of one of some avatars, if it is time; it counts among the avatar's users.

        Returns:
            Seconds after which to call again.
        """
        if self._task is not None:
            return SELDOM_S
        left = self._rested_at - time.monotonic()
        if left > 0:
            return left
        for avatar in avatars:
            work = self._next_of(avatar)
            if work is not None:
                avatar.users += 1
                future = self._thread.submit(work)
                self._task = avatar, future, time.monotonic()
                future.add_done_callback(lambda _: self._wake())
                break
        return SELDOM_S

    def _next_of(self, avatar: RegisteredAvatar) -> Callable[[], None] | None:
        """What is to be done next for an avatar; None: nothing."""
        package, count = avatar.package, avatar.package.manifest.frame_count

        def prepare(index: int) -> None:
            if not self._encoder.prepare(package, index):
                avatar.prepared = count

        def warm(first: int, end: int) -> None:
            variant = Variant(package.manifest.jpeg.quality)
            frames = [(k, self._encoder.part(package, k, variant)) for k in range(first, end)]
            if self._backend.warm(avatar.loaded, frames) < len(frames):
                avatar.warmed = count

        if avatar.unprepared:
            avatar.prepared += 1
            return partial(prepare, avatar.prepared - 1)
        if avatar.unwarmed:
            first, avatar.warmed = avatar.warmed, min(count, avatar.warmed + self._backend.warms)
            return partial(warm, first, avatar.warmed)
        return None

    @property
    def running(self) -> bool:
        """A task was begun, and ``finished`` has not given its avatar back."""
        return self._task is not None

    @property
    def has_news(self) -> bool:
        """Whether a task has ended."""
        return self._task is not None and self._task[1].done()

    def finished(self) -> RegisteredAvatar | None:
        """The avatar whose task has ended: it needs it no more."""
        if self._task is None or not self._task[1].done():
            return None
        (avatar, future, begun), self._task = self._task, None
        now = time.monotonic()
        self._rested_at = now + RESTS * (now - begun)
        error = future.exception()
        if error is not None:  # it comes up again in the jobs that meet it
            log.warning("cannot prepare a frame", avatar=avatar.package.path, reason=str(error))
            avatar.prepared = avatar.warmed = avatar.package.manifest.frame_count
        return avatar

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
