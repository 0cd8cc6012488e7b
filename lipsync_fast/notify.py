# SPDX-License-Identifier: Apache-2.0
"""What systemd is told of the service (sd_notify), without its library.

A datagram to the socket that ``NOTIFY_SOCKET`` names, a path or an abstract name ("@…"). Outside
systemd there is none, and nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Tells the service manager; harmless where there is none, or where it does not listen."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Take the variables out of the environment: they are for this process alone."""
        found = {name: environ.pop(name, "") for name in VARIABLES}
        self._address = _address(found["NOTIFY_SOCKET"])
        self.watchdog_s = _watchdog(found["WATCHDOG_USEC"], found["WATCHDOG_PID"])
        """Within this time the manager wants to hear WATCHDOG=1 again; None where it does not."""
        self._socket: socket.socket | None = None
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self) -> None:
        """The service serves."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service is about to end."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The service's loop runs."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def status(self, line: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + " ".join(line.split()))

    def _send(self, text: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            return  # a manager that is gone or busy is no reason to stop serving

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


def _address(name: str) -> str | bytes | None:
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return name if name.startswith("/") else None


def _watchdog(microseconds: str, pid: str) -> float | None:
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return None if pid and pid != str(os.getpid()) else int(microseconds) / 1e6
