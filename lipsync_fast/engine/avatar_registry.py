# SPDX-License-Identifier: Apache-2.0
"""The avatars of an engine: loaded aside, prepared when there is time, closed when unused."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lipsync_fast.avatars.signing import TrustedKeys
from lipsync_fast.engine.backends.base import Backend
from lipsync_fast.engine.picture_jobs import Pictures, Served
from lipsync_fast.errors import AvatarError, RingError
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")
SELDOM_S = 1.0
SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from others, where frames of theirs wait: while an
avatar is loaded beside them, or all the time (``process.create_engine``)."""
RESTS = 2
MOST_SHARED = 100
"""Pieces of shared memory that wait for their avatars; of more, the oldest is not used."""
MOST_FIGURES = 200
"""Avatars that figures are told of."""
Loaded = Callable[[str, str], None]
"""Gets an avatar's name and the reason why it was not loaded, or nothing."""


class Shelf:
    """Avatars by name. One thread; ``wake`` is called in others when ``step`` has work.

    An avatar that was taken out, or replaced, stays usable for the jobs that hold it (``hold``,
    ``release``) and is closed when the last of them has ended.
    """

    def __init__(self, backend: Backend, pictures: Pictures, wake: Callable[[], None]) -> None:
        self._backend, self._pictures, self._wake = backend, pictures, wake
        self.keys: TrustedKeys | None = None
        """One of them must have signed what is loaded."""
        self._served: dict[str, Served] = {}
        self._aside = ThreadPoolExecutor(1, "lipsync-load")
        self._loading: dict[str, Future[Served]] = {}
        self._loaded: deque[tuple[str, Future[Served], Loaded]] = deque()
        self._chores = ThreadPoolExecutor(1, "lipsync-chores")
        self._chore: tuple[Served, Future[None], float] | None = None
        self._rested_at = 0.0
        self._shared: dict[str, int] = {}

    @property
    def served(self) -> dict[str, Served]:
        """Those that jobs may name."""
        return self._served

    def load(self, name: str, path: str | os.PathLike[str]) -> None:
        """Make an avatar available under ``name``; one of that name is replaced.

        Raises:
            AvatarError: it cannot be used.
        """
        self._put(name, Served.open(self._backend, path, self.keys))

    def load_later(self, name: str, path: str, done: Loaded) -> None:
        """Like ``load``, in a thread; ``done`` is called by a later ``step``.

        Nothing is loaded, and ``done`` not called, when the name was unloaded or given to another
        avatar in the meantime.
        """
        future = self._aside.submit(self._open_aside, path)
        self._loading[name] = future

        def ended(future: Future[Served]) -> None:  # in the thread
            self._loaded.append((name, future, done))
            self._wake()

        future.add_done_callback(ended)

    def _open_aside(self, path: str) -> Served:
        """Open an avatar beside frames that are being made: those wait for this thread less."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, SWITCH_S))
        try:
            return Served.open(self._backend, path, self.keys)
        finally:
            sys.setswitchinterval(before)

    def share(self, name: str, fd: int) -> None:
        """What is made of an avatar's frames is to lie in memory shared with other engines.

        Args:
            name: of an avatar that is here, or is yet to come; the latter may be another one.
            fd: see ``ipc.frame_store``; closed when it is no longer needed.
        """
        if name in self._shared:
            os.close(self._shared.pop(name))
        self._shared[name] = fd
        if name in self._served:
            self._share(name)
        elif len(self._shared) > MOST_SHARED:
            self._forget_shared(next(iter(self._shared)))

    def _forget_shared(self, name: str) -> None:
        fd = self._shared.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _share(self, name: str) -> None:
        served, fd = self._served[name], self._shared.pop(name)
        try:
            self._backend.share(served.loaded, fd)
        except RingError as error:
            log.warning("keeps frames of its own", avatar=name, reason=str(error))
        finally:
            os.close(fd)

    def unload(self, name: str) -> None:
        """Take an avatar out; it may be one that is yet to be loaded."""
        self._forget_shared(name)
        self._take_out(name)

    def _take_out(self, name: str) -> None:
        self._loading.pop(name, None)
        served = self._served.pop(name, None)
        if served is not None:
            self._retire(served)

    def hold(self, served: Served) -> None:
        """A job needs it."""
        served.users += 1
        served.used = True

    def release(self, served: Served) -> None:
        """A job needs it no more."""
        served.users -= 1
        if served.retired:
            self._retire(served)

    # ------------------------------------------------------------ the loop's part
    @property
    def has_news(self) -> bool:
        """Whether ``step`` has something to do."""
        return bool(self._loaded) or (self._chore is not None and self._chore[1].done())

    def step(self) -> None:
        """Take in what the threads have done."""
        while self._loaded:
            self._take_in(*self._loaded.popleft())
        if self._chore is not None and self._chore[1].done():
            (served, future, begun), self._chore = self._chore, None
            now = time.monotonic()
            self._rested_at = now + RESTS * (now - begun)
            error = future.exception()
            if error is not None:  # it comes up again in the jobs that meet it
                log.warning("cannot prepare a frame", avatar=served.package.path, reason=str(error))
                served.done_chores()
            self.release(served)

    def warm(self) -> float:
        """Begin to prepare one frame of an avatar, if it is time.

        Between two, there is a rest of ``RESTS`` times what one took: another engine may be using
        the same processors for speech.

        Returns:
            Seconds after which to call again.
        """
        if self._chore is not None:
            return SELDOM_S
        left = self._rested_at - time.monotonic()
        if left > 0:
            return left
        for served in self._served.values():
            chore = self._pictures.chore(self._backend, served)
            if chore is not None:
                served.users += 1
                future = self._chores.submit(chore)
                self._chore = served, future, time.monotonic()
                future.add_done_callback(lambda _: self._wake())
                break
        return SELDOM_S

    def held(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes that caches hold of each avatar: here, and shared with other engines."""
        own, shared = {}, {}
        for name, served in self._served.items():
            in_backend, in_common = self._backend.held_of(served.loaded)
            own[name] = in_backend + self._pictures.encoder.held_of(served.package)
            shared[name] = in_common
        return _largest(own), _largest(shared)

    @property
    def prepared(self) -> bool:
        """Whether nothing is left to load and to prepare."""
        return not (self._chore or self._loading) and not any(
            self._pictures.has_chore(served) for served in self._served.values()
        )

    def close(self) -> None:
        """Stop the threads and close the packages; before the backend is closed."""
        for threads in (self._chores, self._aside):
            threads.shutdown(wait=True, cancel_futures=True)
        for _, future, _ in self._loaded:
            if not future.cancelled() and future.exception() is None:
                future.result().package.close()
        for served in self._served.values():
            served.package.close()
        self._served.clear()
        for fd in self._shared.values():
            os.close(fd)
        self._shared.clear()

    # ------------------------------------------------------------ how
    def _take_in(self, name: str, future: Future[Served], done: Loaded) -> None:
        wanted = self._loading.get(name) is future
        error = future.exception()
        if wanted:
            del self._loading[name]
            if error is None:
                self._put(name, future.result())
            else:
                self._forget_shared(name)
                if not isinstance(error, AvatarError):
                    log.error("cannot load an avatar", avatar=name, exc_info=error)
            done(name, "" if error is None else str(error) or repr(error))
        elif error is None:
            self._retire(future.result())

    def _put(self, name: str, served: Served) -> None:
        self._take_out(name)
        self._served[name] = served
        if name in self._shared:
            self._share(name)

    def _retire(self, served: Served) -> None:
        served.retired = True
        if served.users == 0:
            self._backend.unload(served.loaded)
            self._pictures.encoder.forget(served.package)
            served.package.close()


def _largest(figures: dict[str, int]) -> dict[str, int]:
    """Those above 0, or the largest of them where there are very many."""
    some = sorted(figures.items(), key=lambda item: -item[1])[:MOST_FIGURES]
    return {name: size for name, size in some if size}
