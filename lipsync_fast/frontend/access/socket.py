# SPDX-License-Identifier: Apache-2.0
"""A client's connection as the protocols see it, whichever server has accepted it."""

from __future__ import annotations

from typing import Literal, Protocol

from lipsync_fast.tokens.subject import Subject


class Socket(Protocol):
    """A WebSocket connection. One task receives, one sends; closing may be done by any."""

    @property
    def peer(self) -> str:
        """The client's address."""
        ...

    @property
    def subject(self) -> Subject:
        """Whose connection it is."""
        ...

    @property
    def port(self) -> int:
        """The port that it came in on."""
        ...

    @property
    def kind(self) -> Literal["stream", "http"]:
        """Whether it came to a stream port, or to /ws of the HTTP port."""
        ...

    @property
    def is_call(self) -> bool:
        """Whether it is the gateway's, for a single call of its client, and no session."""
        ...

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on."""
        ...

    def header(self, name: str) -> str | None:
        """A header of its upgrade; of several of a name, all of them, with commas between."""
        ...

    async def receive(self) -> str | bytes:
        """The next message.

        Raises:
            SocketClosedError: there is none.
        """
        ...

    async def send(self, data: str | bytes) -> None:
        """Send a message; returns when the transport has taken it (back-pressure).

        Raises:
            SocketClosedError: the client has gone.
        """
        ...

    def send_now(self, data: str | bytes) -> bool:
        """Send a message without waiting.

        Returns:
            False where that cannot be done now: nothing was done. Where the transport has not taken
            all of it, ``unsent`` is True, and ``flush`` sends the rest.
        """
        ...

    @property
    def unsent(self) -> bool:
        """Something is left of what ``send_now`` has begun."""
        ...

    async def flush(self) -> None:
        """Send the rest of what ``send_now`` has begun.

        Raises:
            SocketClosedError: the client has gone.
        """
        ...

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; harmless when it is closed already."""
        ...
