# SPDX-License-Identifier: Apache-2.0
"""Child processes: slots, and the processes that fill them.

    starting ──Ready──► ready, or spare ──Bye──► draining ──► gone
        └───────────────── death, from anywhere ────────────────┘

A slot is filled by one process after another; no process's name is ever used again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import msgspec

from lipsync_fast.config import Engines
from lipsync_fast.errors import words_of
from lipsync_fast.ipc.children import EngineSpec, FrontSpec, GatewaySpec, Listener
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.offers import RingSocket
from lipsync_fast.ipc.status import EngineState, FrontLoad, GatewayLoad
from lipsync_fast.priority import lower_session
from lipsync_fast.supervisor.recent_errors import RecentErrors
from lipsync_fast.supervisor.silence import Silence
from lipsync_fast.supervisor.starting import StartWatch

Role = Literal["front", "engine", "gateway"]
Command = Callable[[Role], list[str]]
"""Gives the command line of a child of that role; its task comes on standard input."""
FULL = 0.85
"""Share of a GPU's memory from which on its engines load only avatars that nobody else serves."""
YOUNG_S = 10.0
"""Who dies before it has been ready for so long has died young."""
MODULES: dict[Role, str] = {
    "front": "lipsync_fast.frontend.process",
    "engine": "lipsync_fast.engine.process",
    "gateway": "lipsync_fast.gateway.process",
}


def own_command(role: Role) -> list[str]:
    """Our own children. -P: what is imported does not depend on the folder that we run in."""
    return [sys.executable, "-P", "-m", "lipsync_fast.ipc.birth", str(os.getpid()), MODULES[role]]


@dataclass
class ChildSlot:
    """One of the children that the server is to have, whichever process that is at present.

    Attributes:
        number: among those of its role, from 0.
        device: of an engine; processors: next to it, where they are known and not all.
        spare: filled only once those that are not spares are ready.
        child: who fills it; last: who has filled it last, for status.
        restarts: how often it has been filled again.
        failures: children in a row that have died young.
        reason: how the last one that has died ended; retry_at: when it is filled again.
        was_full: whether the memory of its GPU was full when the last one died.
    """

    role: Role
    number: int
    device: str = ""
    spare: bool = False
    processors: tuple[int, ...] = ()
    listeners: list[Listener] = field(default_factory=list)
    child: Child | None = None
    last: Child | None = None
    restarts: int = 0
    failures: int = 0
    reason: str = ""
    retry_at: float = 0.0
    was_full: bool = False

    def backoff(self, config: Engines) -> float:
        """Seconds to wait before filling it again; call it when its child has died."""
        if self.child is None or not self.child.died_young:
            self.failures = 0
            return 0.0
        self.failures += 1
        doubled = config.backoff_s * 2.0 ** min(self.failures - 1, 60)
        return min(doubled, config.backoff_most_s)


@dataclass(eq=False)
class Child:
    """A process that fills a slot, and what is known of it. Times: seconds, CLOCK_MONOTONIC.

    Attributes:
        pidfd: becomes readable when it has died; -1 where the kernel has none.
        rings: our end of its ring socket.
        last_heard_at: when its last message came.
        initial_avatars: keys that an engine loads before it is ready.
        avatars: keys that it has loaded; loading: those that it was asked for and has not answered.
        load_errors: why it could not load others.
        maker: what an engine's pictures depend on besides their jobs (``ipc.control.Ready``).
        encodes_per_s: pictures of streams of H.264 that an engine can encode.
        start: whether its start gets on; silence: whether it has a reason to say nothing.
        speed: of an engine: what it makes now, as a part of its capacity.
        killed_for: why it was killed, where it was by us.
        farewell: why it leaves, where it has said so.
    """

    name: str
    slot: ChildSlot
    process: subprocess.Popen[bytes]
    pidfd: int
    rings: RingSocket
    started_at: float = field(default_factory=time.monotonic)
    state: EngineState = "starting"
    greeted: bool = False
    ready_at: float | None = None
    last_heard_at: float = field(default_factory=time.monotonic)
    device: str = ""
    capacity: float = 0.0
    maker: str = ""
    encodes_per_s: float = 0.0
    initial_avatars: frozenset[str] = frozenset()
    avatars: set[str] = field(default_factory=set)
    loading: set[str] = field(default_factory=set)
    load_errors: RecentErrors = field(default_factory=RecentErrors)
    load: Load = field(default_factory=Load)
    front_load: FrontLoad = field(default_factory=FrontLoad)
    gateway_load: GatewayLoad = field(default_factory=GatewayLoad)
    speed: float = 1.0
    killed_for: str = ""
    farewell: str = ""

    def __post_init__(self) -> None:
        self.start = StartWatch(self.slot.failures, self.started_at)
        self.silence = Silence()

    @property
    def capacity_now(self) -> float:
        """Frames a second that an engine makes now."""
        return self.capacity * self.speed

    @property
    def role(self) -> Role:
        """Front, engine or gateway."""
        return self.slot.role

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def is_working(self) -> bool:
        """Whether an engine can be given jobs."""
        return self.state in ("ready", "spare")

    @property
    def has_room(self) -> bool:
        """Whether an engine's GPU has memory left, or it needs none."""
        return self.load.device_memory_used <= FULL * self.load.device_memory_total

    @property
    def died_young(self) -> bool:
        """Whether it has died before it had worked for a while."""
        return self.ready_at is None or time.monotonic() - self.ready_at < YOUNG_S

    def kill(self, reason: str) -> None:
        """End it at once, whatever it does."""
        self.killed_for = self.killed_for or reason
        if self.process.returncode is None:
            self.process.kill()

    def how_it_ended(self) -> str:
        """How it has ended, in words; once it has."""
        code = self.process.wait()
        if self.killed_for:
            return f"killed: {self.killed_for}"
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"{how}: {self.farewell}" if self.farewell else how

    def release(self) -> None:
        """It is gone: close what this process holds of it; of its load, what it has done stays."""
        self.state = "gone"
        self.slot.was_full = not self.has_room
        load, front = self.load, self.front_load
        load.waiting = load.in_flight = load.device_memory_used = 0
        front.connections = front.sessions = front.speaking = 0
        front.encoding = 0.0
        self.gateway_load.calls, self.gateway_load.links = {}, 0
        self.rings.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def spawn(
    slot: ChildSlot,
    name: str,
    command: list[str],
    spec: Callable[[int], EngineSpec | FrontSpec | GatewaySpec],
    environ: Mapping[str, str] = MappingProxyType({}),
    fds: Sequence[int] = (),
) -> Child:
    """Start a process in a slot; never blocks on it. For the main thread (``ipc.birth.end_with``).

    Its task goes into a file without a name that is its standard input: unlike a pipe, that takes
    any length at once, and a child that dies early breaks nothing. It gets a session of its own,
    so that Ctrl-C in a terminal reaches the supervisor alone.

    Args:
        spec: makes the task from the descriptor of the child's end of the ring socket.
        environ: added to the environment that it has from here.
        fds: descriptors that it gets besides.

    Raises:
        OSError: no process can be started.
    """
    ours, theirs = RingSocket.pair()
    task = os.memfd_create("lipsync-task", os.MFD_CLOEXEC)
    try:
        content = spec(theirs.fileno())
        os.write(task, msgspec.json.encode(content))
        os.lseek(task, 0, os.SEEK_SET)
        process = subprocess.Popen(
            command,
            stdin=task,
            stdout=2,  # what a child prints is log
            pass_fds=[theirs.fileno(), *(each.fd for each in slot.listeners), *fds],
            start_new_session=True,
            env={**os.environ, **environ},
        )
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(task)
        theirs.close()
    child = Child(name, slot, process, _pidfd(process.pid), ours, device=slot.device)
    if isinstance(content, EngineSpec):
        if content.modest:
            lower_session(process.pid)  # now: to start an interpreter takes a while, too
        child.initial_avatars = frozenset(content.avatars)
        child.loading = set(child.initial_avatars)
    slot.child = slot.last = child
    return child


def why_not_started(error: OSError) -> str:
    """Why ``spawn`` has started nothing: it names the file that could not be run."""
    file = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    return file + words_of(error)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # a kernel before 5.3
        return -1
