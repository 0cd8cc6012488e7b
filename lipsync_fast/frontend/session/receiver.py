# SPDX-License-Identifier: Apache-2.0
"""What a client sends in a session: read one message after the other, and never for ever."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from lipsync_fast.errors import ClosingError, LipsyncError
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.frontend.playout.playout import Playout
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.driver import PlayoutDriver
from lipsync_fast.frontend.session.handshake import MOST_ERRORS, POLICY, code_of, silent
from lipsync_fast_client.protocol import ClientMessage, ErrorMessage, ServerMessage, decode_client


class Receiver:
    """Takes sound and commands of one client.

    A mistake is answered with an error and costs nothing else; who does not stop making them is
    sent away. While more sound waits than may, nothing is read (back-pressure).

    Args:
        playout: knows how much sound waits.
        driver: ticks where something is due.
        on_audio: takes a piece of sound.
        on_message: obeys a command; what it raises as ``LipsyncError`` is the client's mistake.
        post: sends a message to the client.
        taken: how many pictures the client's connection has taken.
        waits: whether the client may rightly wait: for pictures that are not there yet.
    """

    def __init__(
        self,
        socket: Socket,
        services: Services,
        playout: Playout,
        driver: PlayoutDriver,
        *,
        on_audio: Callable[[bytes], None],
        on_message: Callable[[ClientMessage], Awaitable[None]],
        post: Callable[[ServerMessage], None],
        taken: Callable[[], int],
        waits: Callable[[], bool],
    ) -> None:
        self._socket, self._playout, self._driver = socket, playout, driver
        self._limits, self._statistics = services.config.limits, services.statistics
        self._on_audio, self._on_message, self._post = on_audio, on_message, post
        self._taken, self._waits = taken, waits
        self._waits_since: float | None = None
        """When the client was asked to say something, trio's time; None while it is not."""
        self._mistakes = 0

    async def run(self) -> None:
        """Until the client goes.

        Raises:
            SocketClosedError, ClosingError: how it ended.
        """
        limit = self._limits.queued_s
        while True:
            self._waits_since = trio.current_time()
            message = await self._socket.receive()
            self._waits_since = None
            try:
                if isinstance(message, bytes):
                    self._on_audio(message)
                else:
                    await self._on_message(decode_client(message))
            except LipsyncError as error:
                self._report_mistake(error)
            self._driver.send_jobs()
            if isinstance(message, str):
                self._driver.tick()
            else:
                self._driver.tick_if_due()
            while self._playout.queued_s > limit:
                await self._driver.progress.wait()

    def _report_mistake(self, error: LipsyncError) -> None:
        self._mistakes += 1
        fatal = self._mistakes >= MOST_ERRORS
        code = code_of(error)
        self._statistics.count_error(code)
        self._post(ErrorMessage(code=code, message=str(error), fatal=fatal))
        if fatal:
            raise ClosingError(POLICY, f"{MOST_ERRORS} mistakes")

    async def leave_when_silent(self) -> None:
        """End a session whose client says nothing and takes no pictures, though there are some.

        That a connection answers WebSocket pings says nothing: libraries do that for programs that
        have forgotten it.

        Raises:
            ClosingError: it was silent for too long.
        """
        limit, taken, since = self._limits.idle_s, 0, trio.current_time()
        while True:
            now = trio.current_time()
            heard = now if self._waits_since is None else self._waits_since
            left = max(heard, since) + limit - now
            if left > 0:
                await trio.sleep(left)
            elif self._taken() > taken or self._waits():  # it listens
                taken, since = self._taken(), now
            else:
                raise silent(limit)
