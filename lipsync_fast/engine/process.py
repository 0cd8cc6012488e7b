# SPDX-License-Identifier: Apache-2.0
"""The engine process, started by the supervisor (``ipc.birth``).

    supervisor ─► control link, ring socket ─┐
    fronts ─► job rings ─────────────────────┴─► one loop: step, obey, beat, sleep ─► answer rings

It leaves when told to (Stop), when it has drained, and when the supervisor has gone.
Signals do not end it: a Ctrl-C goes to the whole group, and the supervisor is who decides.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import zmq

from lipsync_fast.engine.speed import Speed
from lipsync_fast.errors import AvatarError, ControlError, LipsyncError, RingError, spent
from lipsync_fast.ipc.children import EngineSpec, read_spec
from lipsync_fast.ipc.control import (
    AnyMessage,
    AvatarState,
    Bye,
    Drain,
    Heartbeat,
    Hello,
    LoadAvatar,
    PeerGone,
    Ready,
    Stop,
    UnloadAvatar,
)
from lipsync_fast.ipc.control_socket import Link
from lipsync_fast.ipc.offers import FramesOffered, RingSocket
from lipsync_fast.logs import get_logger, setup_logs
from lipsync_fast.priority import GENTLE, in_background, lower_session, restore_session

if TYPE_CHECKING:
    from lipsync_fast.engine.scheduler import Scheduler

log = get_logger("lipsync.engine")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
RESTED_S = 2.0
"""An engine that has had nothing to do for so long is a spare, or nobody speaks."""
LEAST_MEMORY, MOST_MEMORY = 2 << 30, 64 << 30
"""Bounds of what a CPU engine may take where the configuration says nothing."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def create_scheduler(spec: EngineSpec) -> Scheduler:
    """The engine on the device of a task.

    Raises:
        BackendError: it cannot run here.
    """
    # Imported here, after Hello: they take most of the time that a start takes.
    from lipsync_fast.engine.avatar_registry import SWITCH_S
    from lipsync_fast.engine.backends import create_backend
    from lipsync_fast.engine.frame_cache import open_frame_cache
    from lipsync_fast.engine.scheduler import Scheduler
    from lipsync_fast.engine.splice import FrameEncoder

    device = backend_name(spec.device, os.environ.get(_VISIBLE))
    if device != "cpu":
        # Three threads of the backend and the loop share the interpreter, and none works for long.
        sys.setswitchinterval(SWITCH_S)
    backend = create_backend(
        device, spec.threads, live=True, kernels=spec.kernels, precision=spec.precision
    )
    encoder = FrameEncoder()
    return Scheduler(backend, encoder, open_frame_cache(backend, encoder, spec.utterances))


def backend_name(device: str, visible: str | None) -> str:
    """The backend for a task's device.

    Args:
        device: "cpu", or "cuda:N" by the machine's numbers.
        visible: CUDA_VISIBLE_DEVICES: where it names one GPU, that is number 0 here.
    """
    if device == "cpu":
        return device
    alone = bool(visible) and "," not in str(visible)
    return "cuda:0" if alone else device


class Process:
    """The loop around an engine, and what the supervisor says to it."""

    def __init__(self, spec: EngineSpec, link: Link, rings: RingSocket) -> None:
        self.spec, self.link, self.rings = spec, link, rings
        self.leaving = self._draining = False
        self._lowered = spec.modest
        self._worked_at = time.monotonic()
        self._next_beat = 0
        self._made, self._made_at = 0, time.monotonic_ns()
        self._speed = Speed(0.0, None)

    def start(self) -> None:
        """Make the engine, load what the task names, measure, and say Ready.

        Raises:
            LipsyncError: the device cannot be used.
        """
        self.link.send(Hello(role="engine", pid=os.getpid(), device=self.spec.device))
        modest = self.spec.modest
        # Threads have the priority of who has started them, for ever: so what starts some (NumPy's
        # algebra, the backend) is done here, and only the rest, which is most of it, aside.
        import numpy  # noqa: F401

        if modest:
            in_background(self._import_parts)
        self.scheduler = create_scheduler(self.spec)
        self._measure(in_background(self._load) if modest else self._load())

    def _import_parts(self) -> None:
        import lipsync_fast.engine.frame_cache
        import lipsync_fast.engine.scheduler  # noqa: F401

        kind = "cpu" if self.spec.device == "cpu" else "cuda.backend"
        import_module(f"lipsync_fast.engine.backends.{kind}")

    def _load(self) -> list[AvatarState]:
        """Load the first avatars; what became of them."""
        from lipsync_fast.avatars.signing import trusted_keys

        loaded = []
        scheduler = self.scheduler
        scheduler.registry.keys = trusted_keys(self.spec.require_signed)
        scheduler.registry.on_given_up = self._gave_up
        self._take_offers()
        for name, path in self.spec.avatars.items():
            try:
                scheduler.registry.load(name, path)
            except AvatarError as error:
                log.error("cannot load an avatar", avatar=name, reason=str(error))
                loaded.append(AvatarState(name=name, error=str(error)))
            else:
                loaded.append(AvatarState(name=name))
        return loaded

    def _measure(self, loaded: list[AvatarState]) -> None:
        """Tell what has been loaded and how fast it is."""
        from lipsync_fast.engine.capacity import MEASURE_S, measure
        from lipsync_fast.utterances.keys import maker_of

        scheduler = self.scheduler
        for state in loaded:
            self.link.send(state)
        capacity = self.spec.capacity
        for first in list(scheduler.registry.avatars.values())[:1]:
            seconds = 0 if capacity else MEASURE_S
            measured = measure(scheduler.backend, scheduler.encoder, first, seconds)
            capacity = capacity or measured
            first.used = True  # the default avatar will be: prepare all of it, in spares too
        self._speed = Speed(capacity, scheduler.backend.threads)
        log.info("ready", frames_per_s=round(capacity, 1))
        encodes_per_s = scheduler.streams.frames_per_s
        maker = maker_of(scheduler.backend)
        self.link.send(Ready(capacity=capacity, maker=maker, encodes_per_s=encodes_per_s))

    def run(self) -> None:
        """Work until told to leave."""
        while not self.leaving:
            worked = self.scheduler.step()
            if worked:
                self._worked_at = time.monotonic()
            self._beat()
            # The link's descriptor tells of news once: all must be taken before every sleep.
            for message in self.link.received():
                self._apply(message)
            if self._draining and not worked and self.scheduler.idle:
                self.link.send(Bye())
                return
            timeout_ms = 0
            if not worked and not self.leaving:
                timeout_ms = min(self._until_beat_ms(), int(self.scheduler.warm() * 1000) + 1)
            self._sleep(timeout_ms)

    def _until_beat_ms(self) -> int:
        return max(0, (self._next_beat - time.monotonic_ns()) // 1_000_000 + 1)

    def _sleep(self, timeout_ms: int) -> None:
        """Wait for doorbells, news, rings, or the next beat; take the rings that have come."""
        if timeout_ms and not self.scheduler.may_sleep():
            timeout_ms = 0
        poll = select.poll()
        for fd in (*self.scheduler.doorbells(), self.link.fd, self.rings.fileno()):
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(timeout_ms))
        if self.rings.fileno() in ready:
            self._take_offers()
        if self._lowered:
            called = any(fd in ready for fd in self.scheduler.fronts.doorbells)
            if called or self.scheduler.registry.prepared:
                self._lowered = not restore_session()
        self.scheduler.drain()

    def _take_offers(self) -> None:
        """Serve the fronts whose rings have come, and use the memory that is to be shared.

        Raises:
            ControlError: the supervisor has gone.
        """
        while (offer := self.rings.accept()) is not None:
            if isinstance(offer, FramesOffered):
                self.scheduler.registry.share(offer.avatar, offer.fd)
                continue
            try:
                self.scheduler.fronts.attach(offer.peer, offer.jobs, offer.answers)
            except RingError as error:
                log.error("cannot take the rings of a front", front=offer.peer, reason=str(error))

    def _beat(self) -> None:
        now = time.monotonic_ns()
        if now < self._next_beat:
            return
        self._next_beat = now + int(self.spec.heartbeat_s * 1e9)
        load = self.scheduler.load_now()
        load.frames_per_s = (load.made - self._made) * 1e9 / max(1, now - self._made_at)
        self._made, self._made_at = load.made, now
        self._speed.look(now / 1e9, load.inferences, self.scheduler.backend.cpu_time.work_s)
        self.link.send(Heartbeat(load=load, speed=self._speed.now))

    def _apply(self, message: AnyMessage) -> None:
        if isinstance(message, LoadAvatar):
            if time.monotonic() - self._worked_at > RESTED_S and not self._lowered:
                # No frame waits for this engine: those of others come first.
                lower_session(os.getpid(), GENTLE)
                self._lowered = True
            self.scheduler.registry.load_later(message.name, message.path, self._loaded)
        elif isinstance(message, UnloadAvatar):
            self.scheduler.registry.unload(message.name)
        elif isinstance(message, PeerGone):
            self.scheduler.fronts.detach(message.peer)
        elif isinstance(message, Drain):
            self._draining = True
        elif isinstance(message, Stop):
            self.leaving = True

    def _gave_up(self, name: str, reason: str) -> None:
        log.error("an avatar fails in use", avatar=name, reason=reason)
        self.link.send(AvatarState(name=name, error=reason, in_use=True))

    def _loaded(self, name: str, error: str) -> None:
        if error:
            log.error("cannot load an avatar", avatar=name, reason=error)
        else:
            log.info("loaded an avatar", avatar=name)
        self.link.send(AvatarState(name=name, error=error))


def keep_memory() -> None:
    """Have the C library keep freed pictures' memory for the next ones.

    It gives large pieces back to the system by default, and gets them anew for every frame, page
    by page: 1 ms per MB on a virtual machine. Nothing happens where it is another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def limit_memory(spec: EngineSpec) -> None:
    """Bound what this process may take for itself: an allocation beyond fails, and who has asked
    for it; the machine, and the other processes, are spared.

    What engines share is not counted, nor what is mapped from files. Not on a GPU: its driver
    reserves what it never uses.
    """
    if spec.device != "cpu":
        return
    from lipsync_fast.engine.caches import within_memory

    bytes_ = spec.memory_mb << 20 or max(LEAST_MEMORY, within_memory(MOST_MEMORY, 1 / 2))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        bytes_ = min(bytes_, most)
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_, most))


def main() -> NoReturn:
    """Read the task, work, and leave: status 0 when told to, 1 with a reason in the log."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_memory()
    spec = read_spec(EngineSpec)
    if spec.processors:
        os.sched_setaffinity(0, spec.processors)
    setup_logs(spec.log, spec.name)
    limit_memory(spec)
    context = zmq.Context[zmq.Socket[bytes]]()
    end = socket.socket(fileno=spec.rings_fd)
    end.setblocking(False)
    status, reason, link = 0, "", None
    try:
        link = Link.connect(context, Path(spec.folder), spec.name)
        process = Process(spec, link, RingSocket(end))
        process.start()
        process.run()
        process.link.close()
        context.term()  # waits until Bye has left, 100 ms at most
    except ControlError as error:
        log.warning("leaving", reason=str(error))
    except LipsyncError as error:
        log.error("leaving", reason=str(error))
        status, reason = 1, str(error)
    except BaseException as error:
        status, reason = 1, spent(error) or ""
        if reason:
            log.error("leaving", reason=reason)
        else:
            reason = f"{type(error).__name__}: {error}"
            log.exception("leaving")
    if reason and link is not None:
        link.send(Bye(reason=" ".join(reason.split())[:500]))
        link.close()
        context.term()
    # Not by way of the interpreter's end, which would wait for frames that nobody wants any more.
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
