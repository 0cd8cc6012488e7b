# SPDX-License-Identifier: Apache-2.0
"""The listening sockets, bound before anything is started."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lipsync_fast.canonical import listening_address
from lipsync_fast.config import Listen
from lipsync_fast.errors import PortInUseError, ServerError

BACKLOG = 4096
"""Connections that may wait to be taken; the kernel may allow fewer (net.core.somaxconn). Beyond
them a client's first packet is dropped, and it tries again after 1, 3 and 7 s only, so there is
room for as many as clients may open at once: a front takes some 800 a second."""
INNER_HOST = "127.0.0.1"
ORPHANS_S, _PAUSE_S = 3.0, 0.02
"""How long a port is waited for that the fronts of a crashed run may still be leaving."""

Kind = Literal["stream", "http", "inner", "grpc", "webrtc", "livekit"]
Kept = Literal["grpc", "webrtc", "livekit"]
"""Ports that are only kept: their sockets do not listen, and the gateway's own share them."""


@dataclass(frozen=True)
class BoundPort:
    """A port, with a listening socket for each front (one that all share where there is one)."""

    kind: Kind
    port: int
    sockets: list[socket.socket]

    def close(self) -> None:
        """Close this process's copies: who has gone on listening elsewhere still does."""
        for each in self.sockets:
            each.close()


def bind_ports(
    listen: Listen, fronts: int, orphans: Callable[[], bool] = lambda: False
) -> list[BoundPort]:
    """Bind the stream ports, in order, then the HTTP port.

    With several fronts each gets sockets of its own (SO_REUSEPORT), among which the kernel shares
    connections out; that nobody else has the port is tried first, since another process of this
    user could be shared with too.

    Args:
        listen: host and ports.
        fronts: how many.
        orphans: whether who has the port may be leaving just now.

    Raises:
        ServerError: names the host and port, and why.
    """
    family, host = _resolve(listen.host)
    wanted: list[tuple[Kind, int]] = [("stream", port) for port in listen.ports]
    bound: list[BoundPort] = []
    until = time.monotonic() + ORPHANS_S
    try:
        for kind, port in [*wanted, ("http", listen.http_port)]:
            while True:
                try:
                    bound.append(_bind(kind, family, host, port, fronts))
                    break
                except OSError as error:
                    waits = error.errno == errno.EADDRINUSE and time.monotonic() < until
                    if not waits or not orphans():
                        raise _refusal(listen.host, port, error) from None
                time.sleep(_PAUSE_S)
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


def bind_inner(fronts: int) -> BoundPort:
    """Bind a port on this machine for the gateway, which shows a secret there.

    Raises:
        ServerError: says why there is none.
    """
    try:
        return _bind("inner", socket.AF_INET, INNER_HOST, 0, fronts)
    except OSError as error:
        raise _refusal(INNER_HOST, 0, error) from None


def keep_port(host: str, port: int, kind: Kept = "grpc") -> BoundPort:
    """Keep a port for a server that cannot be handed a socket; it shares it (SO_REUSEPORT).

    That nobody else has the port is tried first, as in ``bind_ports``.

    Raises:
        ServerError: names the host and port, and why.
    """
    family, address = _resolve(host)
    try:
        if port:
            _listener(family, address, port, share=False).close()
        kept = _listener(family, address, port, share=True, listen=False)
    except OSError as error:
        raise _refusal(host, port, error) from None
    return BoundPort(kind, kept.getsockname()[1], [kept])


def _bind(kind: Kind, family: socket.AddressFamily, host: str, port: int, fronts: int) -> BoundPort:
    if fronts == 1:
        alone = _listener(family, host, port, share=False)
        return BoundPort(kind, alone.getsockname()[1], [alone])
    if port:
        _listener(family, host, port, share=False).close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(fronts):
            sockets.append(_listener(family, host, port, share=True))
            port = sockets[0].getsockname()[1]
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return BoundPort(kind, port, sockets)


def _listener(
    family: socket.AddressFamily, host: str, port: int, *, share: bool, listen: bool = True
) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if listen:  # of two that do not listen, neither would be refused
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and host == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
        if listen:
            made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Family and address of a host; IPv4 where it has both."""
    try:
        return listening_address(host)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise ServerError(f"cannot listen on host {host!r}: {reason}") from None


def _refusal(host: str, port: int, error: OSError) -> ServerError:
    where = f"cannot listen on {host} port {port}"
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"{where}: the port is in use; stop the program that has it, or choose another port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ServerError(f"{where}: this user may not listen there; choose a port from 1024 on")
    if error.errno == errno.EADDRNOTAVAIL:
        return ServerError(f"{where}: this machine has no such address")
    return ServerError(f"{where}: {os.strerror(error.errno) if error.errno else error}")
