# SPDX-License-Identifier: Apache-2.0
"""What a protocol has to be for a gateway to serve it, and what is counted of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from lipsync_fast.ipc.status import GatewayLoad


class Adapter(Protocol):
    """A protocol that the gateway speaks on ports of its own. asyncio; one loop."""

    name: str

    async def start(self) -> None:
        """Listen; returns once clients are accepted.

        Raises:
            LipsyncError: it cannot be.
        """
        ...

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and end what has begun: after so many seconds at once."""
        ...


class Counts:
    """What is counted of one protocol, in the gateway's load."""

    def __init__(self, load: GatewayLoad, protocol: str) -> None:
        self._load, self._protocol = load, protocol
        for counts in (load.calls, load.failed, load.refused, load.pictures, load.bytes):
            counts.setdefault(protocol, 0)

    def begun(self, name: str) -> None:
        """A call begins, which is over soon."""
        begun, key = self._load.begun, f"{self._protocol}/{name}"
        begun[key] = begun.get(key, 0) + 1

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A call, from its beginning to its end."""
        calls = self._load.calls
        self.begun(name)
        calls[self._protocol] += 1
        try:
            yield
        finally:
            calls[self._protocol] -= 1

    def failed(self) -> None:
        """A call has ended otherwise than well."""
        self._load.failed[self._protocol] += 1

    def refused(self) -> None:
        """A request was answered by words."""
        self._load.refused[self._protocol] += 1

    def picture(self, size: int) -> None:
        """A picture of so many bytes goes to a client."""
        self._load.pictures[self._protocol] += 1
        self._load.bytes[self._protocol] += size
