# SPDX-License-Identifier: Apache-2.0
"""Control messages between the supervisor and its fronts and engines, over ZeroMQ.

The supervisor binds one socket in a private folder (0700, so no other user can connect); fronts and
engines connect to it, each under its name. Nothing bulky goes here: sound and pictures go through
rings, and the rings' descriptors through a Unix socket that a child is born with (``RingSocket``).

    child ─► supervisor    Hello, Ready, Heartbeat, Bye
    front ─► supervisor    FrontHeartbeat, WantAvatar
    engine ─► supervisor   AvatarState
    supervisor ─► child    LoadAvatar, UnloadAvatar, PeerGone, Drain, Stop
    supervisor ─► front    Engines, StatusReply (every second)
    status ─► supervisor   StatusRequest; answered by StatusReply
    anyone ─► supervisor   ChangeAvatar; answered by AvatarChanged

Every message carries its type's tag, and Hello the version: who speaks another one is told to stop.
A message that cannot be read is counted and ignored. A peer that does not read loses messages
beyond a bound, and does not hold up the sender; heartbeats are what tells that it is gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import zmq
from msgspec import Meta

from lipsync_fast.errors import ControlError
from lipsync_fast.ipc.ring import RingHandle

VERSION = 2
MOST_QUEUED = 1000
"""Messages to a peer that does not read; more are dropped."""
LONGEST = 1 << 20

Name = Annotated[str, Meta(min_length=1, max_length=1000)]
Amount = Annotated[int, Meta(ge=0)]


class Message(msgspec.Struct, tag=True, kw_only=True):
    """Base of all."""


class Hello(Message):
    """A child is there.

    Attributes:
        role: "front" or "engine".
        pid: its process.
        device: what an engine runs on, such as "cpu" or "cuda:0".
        version: of these messages.
    """

    role: str
    pid: int
    device: str = ""
    version: int = VERSION


class Load(msgspec.Struct, kw_only=True):
    """What an engine has to do, has done, and holds.

    Attributes:
        inferences: frames that a network made.
        store: counts of frames that are kept (``utterances.write_behind``); store_bytes: of all
            that is kept, by whomever.
        spent_s: processor time of the host, by what it was spent on; only grows.
        device_memory_used, device_memory_total: bytes of its GPU, whoever uses them; 0 on a CPU.
        avatar_bytes: what caches hold of avatars, by the versions' keys; the largest alone where
            there are very many. avatar_shared: the same of memory that engines share.
    """

    waiting: Amount = 0
    in_flight: Amount = 0
    made: Amount = 0
    skipped: Amount = 0
    failed: Amount = 0
    dropped: Amount = 0
    damaged: Amount = 0
    inferences: Amount = 0
    store: dict[str, int] = msgspec.field(default_factory=dict)
    store_bytes: Amount = 0
    frames_per_s: float = 0.0
    oldest_ms: float = 0.0
    cache_bytes: dict[str, int] = msgspec.field(default_factory=dict)
    spent_s: dict[str, float] = msgspec.field(default_factory=dict)
    device_memory_used: Amount = 0
    device_memory_total: Amount = 0
    avatar_bytes: dict[str, int] = msgspec.field(default_factory=dict)
    avatar_shared: dict[str, int] = msgspec.field(default_factory=dict)


class Ready(Message):
    """An engine has loaded the avatars it was born with, and takes jobs; a front accepts.

    Attributes:
        capacity: frames a second that an engine makes, measured; 0 for a front.
        maker: what an engine's pictures depend on besides their jobs (``utterances.keys``).
    """

    capacity: float = 0.0
    maker: str = ""


class Heartbeat(Message):
    """An engine lives. Sent by its working loop, so a loop that stands still sends none."""

    load: Load = msgspec.field(default_factory=Load)


class FrontHeartbeat(Message):
    """A front lives; ``load`` is a status.FrontLoad as plain data."""

    load: msgspec.Raw


class WantAvatar(Message):
    """A front needs an avatar that engines may not have loaded; nothing when they have."""

    name: Name


class AvatarState(Message):
    """An engine has loaded an avatar (error empty), or could not."""

    name: Name
    error: str = ""


class Bye(Message):
    """A child is about to leave, having done all it had; or for a reason, such as a lost GPU."""

    reason: str = ""


class LoadAvatar(Message):
    """Make a version of an avatar available under its key."""

    name: Name
    path: str


class UnloadAvatar(Message):
    """Jobs that name it may be refused from now on."""

    name: Name


class EngineInfo(msgspec.Struct, kw_only=True):
    """What fronts know of an engine.

    Attributes:
        active: it may be given jobs; a spare is kept for when another one dies.
        avatars: loaded there.
        errors: avatars that it could not load, with the reasons.
        capacity: frames a second, measured.
        frames_per_s: that it makes now, for all fronts.
        maker: see ``Ready``.
    """

    name: str
    device: str
    active: bool
    capacity: float
    avatars: list[str]
    errors: dict[str, str] = msgspec.field(default_factory=dict)
    frames_per_s: float = 0.0
    maker: str = ""


class AvatarVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version of an avatar that sessions which begin now get.

    Attributes:
        name: as clients know it; key: as jobs and engines do.
        number: 1 is the first one of that name.
        path: where its files can be opened, also when others have taken their place.
    """

    name: str
    key: str
    number: Amount
    path: str


class Engines(Message):
    """All engines that live, whenever something about them has changed, and every second.

    Attributes:
        engines: those that are not here are gone.
        speakers: how many sessions may speak at once, in all fronts.
        others: how many speak in other fronts.
        avatars: in use; others come into use when a front wants them.
        unloaded: names that are refused until somebody loads them again.
        refused: names that could not be had lately, with the reasons.
        catalogue: raised with every change of what is in use or unloaded.
    """

    engines: list[EngineInfo]
    speakers: Amount = 0
    others: Amount = 0
    avatars: list[AvatarVersion] = []
    unloaded: list[str] = []
    refused: dict[str, str] = {}
    catalogue: Amount = 0


class PeerGone(Message):
    """A front or engine has died or left; its rings are void."""

    peer: Name


class Drain(Message):
    """Take nothing new; end what has begun; then say Bye."""


class Stop(Message):
    """Leave at once."""


class StatusRequest(Message):
    """Asked by ``lipsync-fast status``."""


class StatusReply(Message):
    """All that the supervisor knows, as plain data."""

    status: msgspec.Raw


class ChangeAvatar(Message):
    """Load an avatar, or what has taken its place; or unload it.

    Attributes:
        request: comes back with the answer.
        path: of the package; looked for by its name where empty.
        anywhere: it may lie outside of the folders of avatars.
    """

    request: Name
    action: Literal["load", "unload"]
    name: Name
    path: Annotated[str, Meta(max_length=4096)] = ""
    anywhere: bool = False


Change = Literal["loaded", "unchanged", "unloaded", "missing", "refused", "late"]


class AvatarChanged(Message):
    """What became of a change.

    Attributes:
        state: loaded or unloaded: so it is now; unchanged: it was so before; missing: there is no
            such avatar; refused: it cannot be, all is as it was; late: not done in time.
        version: that sessions get now; 0 for none.
        reason: a sentence; empty where there is nothing to say.
    """

    request: str
    name: str
    state: Change
    version: Amount = 0
    reason: str = ""


AnyMessage = (
    Hello
    | Ready
    | Heartbeat
    | FrontHeartbeat
    | WantAvatar
    | AvatarState
    | Bye
    | LoadAvatar
    | UnloadAvatar
    | Engines
    | PeerGone
    | Drain
    | Stop
    | StatusRequest
    | StatusReply
    | ChangeAvatar
    | AvatarChanged
)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def private_folder(path: Path) -> Path:
    """Make sure that a folder is there, ours, and closed to others.

    Raises:
        ControlError: it is another user's, or open to others, or no folder.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = path.lstat()
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}") from None
    if not path.is_dir() or path.is_symlink() or about.st_uid != os.geteuid():
        raise ControlError(f"{path}: is not a folder of this user")
    if about.st_mode & 0o077:
        raise ControlError(f"{path}: is open to other users; chmod 700 it")
    return path


def address(folder: Path) -> str:
    """The control socket in a private folder.

    Raises:
        ControlError: the folder's path is too long for a Unix socket.
    """
    path = folder / "control"
    if len(os.fsencode(path)) > 100:
        raise ControlError(f"{path}: longer than a Unix socket's path may be (100 bytes)")
    return f"ipc://{path}"


@dataclass
class _Socket:
    """What both ends share."""

    socket: zmq.Socket[bytes]
    ignored: int = field(default=0, init=False)
    """Messages that could not be read."""
    dropped: int = field(default=0, init=False)
    """Messages that a peer did not take."""

    @property
    def fd(self) -> int:
        """Becomes readable, once, when something has come; every message must be taken then."""
        return int(self.socket.getsockopt(zmq.FD))

    def _send(self, frames: list[bytes]) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError:
            self.dropped += 1
            return False
        return True

    def _take(self) -> list[bytes] | None:
        try:
            return self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def _read(self, data: bytes) -> AnyMessage | None:
        try:
            message: AnyMessage = _decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            self.ignored += 1
            return None
        return message

    def close(self) -> None:
        """Close at once; what was sent last is still given 100 ms to leave."""
        self.socket.close(linger=100)


def _options(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    socket.setsockopt(zmq.SNDHWM, MOST_QUEUED)
    socket.setsockopt(zmq.RCVHWM, MOST_QUEUED)
    socket.setsockopt(zmq.MAXMSGSIZE, LONGEST)
    return socket


class Hub(_Socket):
    """The supervisor's end."""

    @classmethod
    def bind(cls, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> Hub:
        """Open the socket in a folder of ``private_folder``.

        Raises:
            ControlError: it cannot be opened.
        """
        socket = _options(context.socket(zmq.ROUTER))
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to nobody is an error
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a successor takes over its name
        try:
            socket.bind(address(folder))
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise ControlError(f"cannot open {address(folder)}: {error}") from None
        return cls(socket)

    def send(self, name: str, message: AnyMessage) -> bool:
        """Send to a peer; False when it is not there or does not read."""
        return self._send([name.encode(), _encoder.encode(message)])

    def received(self) -> Iterator[tuple[str, AnyMessage]]:
        """All that has come, with the senders' names."""
        while (frames := self._take()) is not None:
            if len(frames) != 2:
                self.ignored += 1
                continue
            message = self._read(frames[1])
            if message is not None:
                yield frames[0].decode(errors="replace"), message


class Link(_Socket):
    """A child's end, or that of ``lipsync-fast status``."""

    @classmethod
    def connect(cls, context: zmq.Context[zmq.Socket[bytes]], folder: Path, name: str) -> Link:
        """Connect under a name to the hub in a folder (also before it is there)."""
        socket = _options(context.socket(zmq.DEALER))
        socket.setsockopt(zmq.IDENTITY, name.encode())
        socket.connect(address(folder))
        return cls(socket)

    def send(self, message: AnyMessage) -> bool:
        """Send to the hub; False when too much waits to be sent."""
        return self._send([_encoder.encode(message)])

    def received(self) -> Iterator[AnyMessage]:
        """All that has come."""
        while (frames := self._take()) is not None:
            message = self._read(frames[0]) if len(frames) == 1 else None
            if message is not None:
                yield message


# ---------------------------------------------------------------- descriptors
class _RingsOffer(msgspec.Struct, frozen=True, tag="rings"):
    peer: str
    generation: int


class _FramesOffer(msgspec.Struct, frozen=True, tag="frames"):
    avatar: str


@dataclass(frozen=True)
class RingsOffered:
    """The rings between this child and a peer."""

    peer: str
    jobs: RingHandle
    answers: RingHandle


@dataclass(frozen=True)
class FramesOffered:
    """Shared memory for what engines make of an avatar's frames (``frame_store``)."""

    avatar: str
    fd: int


@dataclass
class RingSocket:
    """A Unix socket pair's end, on which the supervisor hands rings to a child.

    A message is the offer's peer and generation, with six descriptors (SCM_RIGHTS): memory, data
    doorbell and space doorbell of the job ring, then those of the answer ring. The supervisor
    closes its copies; so the rings are gone when both peers are. Engines are also offered the
    memory that they share for an avatar's frames: the avatar's name, with one descriptor.
    """

    socket: socket.socket

    @classmethod
    def pair(cls) -> tuple[RingSocket, RingSocket]:
        """The supervisor's end and the child's, which does not block."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """The descriptor."""
        return self.socket.fileno()

    def offer(self, peer: str, jobs: RingHandle, answers: RingHandle) -> bool:
        """Hand two rings of one generation over; False when the child is gone or does not read."""
        return self._send(_RingsOffer(peer, jobs.generation), [*jobs.fds, *answers.fds])

    def offer_frames(self, avatar: str, fd: int) -> bool:
        """Hand an avatar's shared memory over; False when the child is gone or does not read."""
        return self._send(_FramesOffer(avatar), [fd])

    def _send(self, about: _RingsOffer | _FramesOffer, fds: list[int]) -> bool:
        try:
            socket.send_fds(self.socket, [msgspec.msgpack.encode(about)], fds)
        except OSError:
            return False
        return True

    def accept(self) -> RingsOffered | FramesOffered | None:
        """The next offer; None when there is none now.

        Raises:
            ControlError: the supervisor has gone.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(self.socket, 4096, 6)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ControlError(f"cannot receive rings: {error.strerror}") from None
        if not data:
            raise ControlError("the supervisor has gone")
        try:
            about = msgspec.msgpack.decode(data, type=_RingsOffer | _FramesOffer)
        except msgspec.MsgspecError:
            about = None
        wanted = 6 if isinstance(about, _RingsOffer) else 1
        if about is None or len(fds) != wanted or flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise ControlError(f"an offer that cannot be read, with {len(fds)} descriptors")
        for fd in fds:
            os.set_inheritable(fd, False)
        if isinstance(about, _FramesOffer):
            return FramesOffered(about.avatar, fds[0])
        jobs = RingHandle(fds[0], fds[1], fds[2], about.generation)
        answers = RingHandle(fds[3], fds[4], fds[5], about.generation)
        return RingsOffered(about.peer, jobs, answers)

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
