# SPDX-License-Identifier: Apache-2.0
"""The two ends of the control socket: the supervisor's hub, and the link of everybody else.

A peer that does not read loses messages beyond a bound, and does not hold up the sender.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from lipsync_fast.errors import ControlError
from lipsync_fast.ipc.control import LONGEST, MOST_QUEUED, AnyMessage

if TYPE_CHECKING:
    import trio

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
    _wait: trio.CancelScope | None = field(default=None, init=False)

    @property
    def fd(self) -> int:
        """Becomes readable, once, when something has come; every message must be taken then."""
        return int(self.socket.getsockopt(zmq.FD))

    async def wait(self) -> None:
        """Wait until something may have come (trio); then every message must be taken.

        The descriptor tells of news once, at its edge, and sending may swallow that edge: so
        whoever sends ends the wait, too. To be called at once when nothing was there to be taken.
        """
        import trio

        try:
            with trio.CancelScope() as self._wait:
                await trio.lowlevel.wait_readable(self.fd)
        finally:
            self._wait = None

    def _send(self, frames: list[bytes]) -> bool:
        if self._wait is not None:
            self._wait.cancel()
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
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
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


@dataclass
class Hub(_Socket):
    """The supervisor's end."""

    folder: Path
    _file: tuple[int, int] = field(default=(0, 0), init=False)
    """Which file the socket is."""

    @classmethod
    def bind(cls, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> Hub:
        """Open the socket in a folder of ``private_folder``.

        Raises:
            ControlError: it cannot be opened.
        """
        socket = _options(context.socket(zmq.ROUTER))
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to nobody is an error
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a successor takes over its name
        hub = cls(socket, folder)
        try:
            hub.open()
        except ControlError:
            socket.close(linger=0)
            raise
        return hub

    def open(self) -> None:
        """Listen in the folder; again, where somebody has removed the socket. Who has connected
        already stays connected.

        Raises:
            ControlError: it cannot be opened.
        """
        try:
            self.socket.bind(address(self.folder))
        except zmq.ZMQError as error:
            raise ControlError(f"cannot open {address(self.folder)}: {error}") from None
        self._file = self._there()

    @property
    def is_there(self) -> bool:
        """Whether new peers find the socket."""
        return self._there() == self._file

    def _there(self) -> tuple[int, int]:
        try:
            about = os.lstat(address(self.folder).removeprefix("ipc://"))
        except OSError:
            return 0, 0
        return about.st_dev, about.st_ino

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
