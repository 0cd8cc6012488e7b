# SPDX-License-Identifier: Apache-2.0
"""The avatars of an engine: loaded aside, prepared when there is time, closed when unused."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.signing import TrustedKeys
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.base import Backend
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.engine.warmup import AvatarWarmup
from lipsync_fast.errors import AvatarError, RingError
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")
SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from others, where frames of theirs wait: while an
avatar is loaded beside them, or all the time (``process.create_engine``)."""
MOST_SHARED = 100
"""Pieces of shared memory that wait for their avatars; of more, the oldest is not used."""
MOST_FIGURES = 200
"""Avatars that figures are told of."""
FAILURES = 2
"""Jobs of an avatar that have failed as none should before that is told."""
Loaded = Callable[[str, str], None]
"""Gets an avatar's name and the reason why it was not loaded, or nothing."""


class AvatarRegistry:
    """Avatars by name. For one thread; ``wake`` is called in others when ``step`` has work.

    An avatar that was taken out, or replaced, stays usable for the jobs that hold it (``hold``,
    ``release``) and is closed when the last of them has ended. Its methods are what the supervisor
    asks for, and what threads have done meanwhile; they share one table.
    """

    def __init__(self, backend: Backend, encoder: FrameEncoder, wake: Callable[[], None]) -> None:
        self._backend, self._encoder, self._wake = backend, encoder, wake
        self.keys: TrustedKeys | None = None
        """One of them must have signed what is loaded."""
        self.on_given_up: Loaded = lambda name, reason: None
        """Told of an avatar whose jobs fail."""
        self.on_closed: Callable[[AvatarPackage], None] = lambda package: None
        """Told of a package that nobody needs any more."""
        self.avatars: dict[str, RegisteredAvatar] = {}
        """Those that jobs may name."""
        self._aside = ThreadPoolExecutor(1, "lipsync-load")
        self._loading: dict[str, Future[RegisteredAvatar]] = {}
        self._loaded: deque[tuple[str, Future[RegisteredAvatar], Loaded]] = deque()
        self._warmup = AvatarWarmup(backend, encoder, wake)
        self._shared: dict[str, int] = {}

    def load(self, name: str, path: str | os.PathLike[str]) -> None:
        """Make an avatar available under ``name``; one of that name is replaced.

        Raises:
            AvatarError: it cannot be used.
        """
        self._install(name, RegisteredAvatar.open(self._backend, path, self.keys))

    def load_later(self, name: str, path: str, done: Loaded) -> None:
        """Like ``load``, in a thread; ``done`` is called by a later ``step``.

        Nothing is loaded, and ``done`` not called, when the name was unloaded or given to another
        avatar in the meantime.
        """
        future = self._aside.submit(self._open_aside, path)
        self._loading[name] = future

        def ended(future: Future[RegisteredAvatar]) -> None:  # in the thread
            self._loaded.append((name, future, done))
            self._wake()

        future.add_done_callback(ended)

    def _open_aside(self, path: str) -> RegisteredAvatar:
        """Open an avatar beside frames that are being made: those wait for this thread less."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, SWITCH_S))
        try:
            return RegisteredAvatar.open(self._backend, path, self.keys)
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
        if name in self.avatars:
            self._share(name)
        elif len(self._shared) > MOST_SHARED:
            self._forget_shared(next(iter(self._shared)))

    def _forget_shared(self, name: str) -> None:
        fd = self._shared.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _share(self, name: str) -> None:
        avatar, fd = self.avatars[name], self._shared.pop(name)
        try:
            self._backend.share(avatar.loaded, fd)
        except RingError as error:
            log.warning("keeps frames of its own", avatar=name, reason=str(error))
        finally:
            os.close(fd)

    def unload(self, name: str) -> None:
        """Take an avatar out; it may be one that is yet to be loaded."""
        self._forget_shared(name)
        self._remove(name)

    def _remove(self, name: str) -> None:
        self._loading.pop(name, None)
        avatar = self.avatars.pop(name, None)
        if avatar is not None:
            self._retire(avatar)

    def hold(self, avatar: RegisteredAvatar) -> None:
        """A job needs it."""
        avatar.users += 1
        avatar.used = True

    def release(self, avatar: RegisteredAvatar) -> None:
        """A job needs it no more."""
        avatar.users -= 1
        if avatar.retired:
            self._retire(avatar)

    def failed(self, avatar: RegisteredAvatar, reason: str) -> None:
        """A job of an avatar has failed as none should (it took too much memory, most likely).

        The second time it is told of: it is to be taken out of use.
        """
        avatar.failures += 1
        if avatar.failures == FAILURES:
            for name in [name for name, held in self.avatars.items() if held is avatar]:
                self.on_given_up(name, reason)

    # ------------------------------------------------------------ the loop's part
    @property
    def has_news(self) -> bool:
        """Whether ``step`` has something to do."""
        return bool(self._loaded) or self._warmup.has_news

    def step(self) -> None:
        """Take in what the threads have done."""
        while self._loaded:
            self._finish_load(*self._loaded.popleft())
        avatar = self._warmup.finished()
        if avatar is not None:
            self.release(avatar)

    def warm(self) -> float:
        """Begin to get an avatar's next frame ready; see ``AvatarWarmup.start``."""
        return self._warmup.start(self.avatars.values())

    def cached_bytes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes that caches hold of each avatar: here, and shared with other engines."""
        own, shared = {}, {}
        for name, avatar in self.avatars.items():
            in_backend, in_common = self._backend.avatar_bytes(avatar.loaded)
            own[name] = in_backend + self._encoder.avatar_bytes(avatar.package)
            shared[name] = in_common
        return _largest(own), _largest(shared)

    @property
    def prepared(self) -> bool:
        """Whether nothing is left to load and to prepare."""
        return not (self._warmup.running or self._loading) and not any(
            avatar.unprepared or avatar.unwarmed for avatar in self.avatars.values()
        )

    def close(self) -> None:
        """Stop the threads and close the packages; before the backend is closed."""
        self._warmup.close()
        self._aside.shutdown(wait=True, cancel_futures=True)
        for _, future, _ in self._loaded:
            if not future.cancelled() and future.exception() is None:
                future.result().package.close()
        for avatar in self.avatars.values():
            avatar.package.close()
        self.avatars.clear()
        for fd in self._shared.values():
            os.close(fd)
        self._shared.clear()

    # ------------------------------------------------------------ how
    def _finish_load(self, name: str, future: Future[RegisteredAvatar], done: Loaded) -> None:
        wanted = self._loading.get(name) is future
        error = future.exception()
        if wanted:
            del self._loading[name]
            if error is None:
                self._install(name, future.result())
            else:
                self._forget_shared(name)
                if not isinstance(error, AvatarError):
                    log.error("cannot load an avatar", avatar=name, exc_info=error)
            done(name, "" if error is None else str(error) or repr(error))
        elif error is None:
            self._retire(future.result())

    def _install(self, name: str, avatar: RegisteredAvatar) -> None:
        self._remove(name)
        self.avatars[name] = avatar
        if name in self._shared:
            self._share(name)

    def _retire(self, avatar: RegisteredAvatar) -> None:
        avatar.retired = True
        if avatar.users == 0:
            self._backend.unload(avatar.loaded)
            self._encoder.forget(avatar.package)
            self.on_closed(avatar.package)
            avatar.package.close()


def _largest(figures: dict[str, int]) -> dict[str, int]:
    """Those above 0, or the largest of them where there are very many."""
    some = sorted(figures.items(), key=lambda item: -item[1])[:MOST_FIGURES]
    return {name: size for name, size in some if size}
