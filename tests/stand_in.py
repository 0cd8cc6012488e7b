# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the supervisor's children: they speak its messages and do nothing else.

``python stand_in.py serve FILE`` is the real supervisor, by that configuration, with them as its
children; ``stand_in.py engine|front`` is one, with its task on standard input as real ones have it.
The variable STAND_IN holds options (``Options``) as JSON. A child writes what it gets to NAME.jsonl
in the folder of the options, and obeys JSON orders that come as datagrams to NAME.do there.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from lipsync_fast.config_load import load
from lipsync_fast.errors import ControlError, LipsyncError
from lipsync_fast.ipc import control as c
from lipsync_fast.ipc.children import EngineSpec, FrontSpec, read_spec
from lipsync_fast.ipc.control_socket import Link
from lipsync_fast.ipc.offers import FramesOffered, RingSocket
from lipsync_fast.ipc.ring import RingReader, RingWriter
from lipsync_fast.ipc.status import FrontLoad
from lipsync_fast.logs import setup_logs
from lipsync_fast.supervisor import children, launch
from lipsync_fast.supervisor.gpus import DetectedGpus, Gpu


class Options(msgspec.Struct, kw_only=True):
    """How stand-ins behave.

    Attributes:
        folder: of what they write.
        capacity: frames a second that engines say.
        never_ready, die_early: roles that do not become ready, or exit with 3 before it.
        die_when_ready: roles that exit with 4 just after.
        bad: avatars that engines cannot load, with reasons; deadly: those they die of.
        busy: fronts do not end what they have begun when they drain.
        deaf: roles that do not leave when told to stop.
        version: of Hello.
        gpus: that the supervisor is told it has; near: processors next to each.
        lost: devices that are lost before their engines are ready, with what these say then.
    """

    folder: str
    capacity: float = 100.0
    never_ready: list[str] = []
    die_early: list[str] = []
    die_when_ready: list[str] = []
    bad: dict[str, str] = {}
    deadly: list[str] = []
    busy: bool = False
    deaf: list[str] = []
    version: int = c.VERSION
    gpus: int = 0
    near: list[int] = []
    lost: dict[str, str] = {}


class StandIn:
    """A child."""

    def __init__(self, role: str) -> None:
        self.options = msgspec.json.decode(os.environ["STAND_IN"], type=Options)
        self.role = role
        self.spec: Any = read_spec(EngineSpec if role == "engine" else FrontSpec)
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.link = Link.connect(self.context, Path(self.spec.folder), self.spec.name)
        rings = socket.socket(fileno=self.spec.rings_fd)
        rings.setblocking(False)
        self.rings = RingSocket(rings)
        base = Path(self.options.folder) / self.spec.name
        self.log = open(f"{base}.jsonl", "a", buffering=1)  # noqa: SIM115
        self.orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.orders.bind(f"{base}.do")
        engines = c.Load(made=7, frames_per_s=3.5)
        self.load: FrontLoad | c.Load = engines if role == "engine" else FrontLoad()

    def note(self, kind: str, **about: object) -> None:
        """Write down what has happened."""
        self.log.write(json.dumps({"kind": kind, "ns": time.monotonic_ns(), **about}) + "\n")

    def run(self) -> None:
        """Live."""
        cuda = {name: value for name, value in os.environ.items() if name.startswith("CUDA_")}
        spec = msgspec.to_builtins(self.spec)
        self.note("born", spec=spec, pid=os.getpid(), cuda=cuda)
        device = self.spec.device if self.role == "engine" else ""
        hello = c.Hello(
            role=self.role, pid=os.getpid(), device=device, version=self.options.version
        )
        self.link.send(hello)
        if self.role in self.options.die_early:
            sys.exit(3)
        if device in self.options.lost:
            self.link.send(c.Bye(reason=self.options.lost[device]))
            self.link.close()
            self.context.term()
            sys.exit(1)
        if self.role == "engine":
            for name in self.spec.avatars:
                self.load_avatar(name)
        if self.role not in self.options.never_ready:
            self.link.send(c.Ready(capacity=self.options.capacity if device else 0.0))
        if self.role in self.options.die_when_ready:
            self.link.close()
            self.context.term()
            sys.exit(4)
        beat = self.spec.heartbeat_s if device else self.spec.config.engines.heartbeat_s
        poll = select.poll()
        for fd in (self.link.fd, self.rings.fileno(), self.orders.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            self.beat()
            for message in self.link.received():
                self.obey(message)
            poll.poll(beat * 1000)
            self.take_rings()
            self.take_orders()

    def beat(self) -> None:
        """Say that it lives."""
        if self.role == "engine":
            self.link.send(c.Heartbeat(load=self.load))
        else:
            load = msgspec.Raw(msgspec.msgpack.encode(self.load))
            self.link.send(c.FrontHeartbeat(load=load))

    def obey(self, message: c.AnyMessage) -> None:
        """A message has come."""
        about = {}
        if isinstance(message, c.StatusReply):
            about["status"] = msgspec.msgpack.decode(message.status)
        else:
            about = msgspec.to_builtins(message)
        self.note(type(message).__name__, **about)
        if isinstance(message, c.LoadAvatar):
            self.load_avatar(message.name)
        elif isinstance(message, c.Engines) and isinstance(self.load, FrontLoad):
            self.load.catalogue = message.catalogue
        elif isinstance(message, c.Drain) and not self.options.busy:
            self.link.send(c.Bye())
            self.leave()
        elif isinstance(message, c.Stop) and self.role not in self.options.deaf:
            self.leave()

    def load_avatar(self, name: str) -> None:
        """Say what became of an avatar."""
        if name in self.options.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.link.send(c.AvatarState(name=name, error=self.options.bad.get(name, "")))

    def take_rings(self) -> None:
        """Take what is offered; leave when the supervisor has gone."""
        try:
            while (offer := self.rings.accept()) is not None:
                if isinstance(offer, FramesOffered):
                    self.note("frames", avatar=offer.avatar, inode=os.fstat(offer.fd).st_ino)
                    os.close(offer.fd)
                    continue
                peer, jobs, answers = offer.peer, offer.jobs, offer.answers
                if self.role == "engine":
                    RingReader(jobs), RingWriter(answers)
                else:
                    RingWriter(jobs), RingReader(answers)
                self.note("rings", peer=peer, generation=jobs.generation)
        except ControlError:
            self.note("orphan")
            if self.role not in self.options.deaf:
                self.leave()

    def take_orders(self) -> None:
        """Do what the test wants."""
        while select.select([self.orders], [], [], 0)[0]:
            order = json.loads(self.orders.recv(4096))
            if "want" in order:
                self.link.send(c.WantAvatar(name=order["want"]))
            if "load" in order:
                self.load = msgspec.convert(order["load"], type(self.load))
            if "garbage" in order:
                self.link.socket.send(order["garbage"].encode())

    def leave(self) -> None:
        """Exit."""
        self.link.close()
        self.context.term()
        sys.exit(0)


def command(role: str) -> list[str]:
    """What a stand-in is run as."""
    return [sys.executable, "-P", __file__, role]


def serve(file: Path) -> None:
    """Run the real supervisor with stand-ins as its children."""
    config = load(file, {}).config
    setup_logs(config.log, "supervisor")
    options = msgspec.json.decode(os.environ["STAND_IN"], type=Options)
    # A spare has the lowest priority until it is ready: beside eight programs that compute, its
    # interpreter alone takes minutes to start. What is tested here is not that.
    children.lower_session = lambda pid: None  # type: ignore[assignment, misc]
    gpus = [Gpu(number, str(number), tuple(options.near)) for number in range(options.gpus)]
    try:
        sys.exit(launch.serve(config, command=command, gpus=DetectedGpus(gpus)))
    except LipsyncError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    StandIn(sys.argv[1]).run()
