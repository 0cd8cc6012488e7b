# SPDX-License-Identifier: Apache-2.0
"""How a child gets descriptors from the supervisor: rings, and memory for avatars' frames."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import msgspec

from lipsync_fast.errors import ControlError
from lipsync_fast.ipc.ring import RingHandle


class _RingsOffer(msgspec.Struct, frozen=True, tag="rings"):
    peer: str
    generation: int


class _FramesOffer(msgspec.Struct, frozen=True, tag="frames"):
    avatar: str


_OFFER = msgspec.msgpack.Decoder(_RingsOffer | _FramesOffer)


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
            about = _OFFER.decode(data)
        except (msgspec.MsgspecError, UnicodeError):
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
