# SPDX-License-Identifier: Apache-2.0
"""How a server ends: by a signal, by a failure, at once or after its fronts have drained.

SIGTERM, SIGINT   while nothing is served: stop. Else fronts drain, for ``drain_seconds`` at
                  most, then all stop. A second one: at once, without a pause
SIGHUP            what may change while it runs is read again; a terminal that was closed is no
                  reason to stop
a failure         what makes the server useless ends it, with the reason
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from lipsync_fast.errors import ServerError
from lipsync_fast.ipc.control import Drain, Stop
from lipsync_fast.logs import get_logger
from lipsync_fast.notify import Notifier
from lipsync_fast.signals import Changes
from lipsync_fast.supervisor.control import ControlServer
from lipsync_fast.supervisor.ports import BoundPort
from lipsync_fast.supervisor.roster import Roster

STOP_S = 2.0
"""Seconds from Stop to SIGKILL."""

log = get_logger("lipsync.supervisor")


class Shutdown:
    """Decides when a server ends, and takes its children there. One thread.

    Args:
        ports: closed when the server drains.
        changes: of children.
        on_hangup: called on SIGHUP.
    """

    def __init__(
        self,
        roster: Roster,
        control: ControlServer,
        ports: list[BoundPort],
        notifier: Notifier,
        drain_seconds: float,
        changes: Changes,
        on_hangup: Callable[[], None],
    ) -> None:
        self._roster, self._control, self._ports = roster, control, ports
        self._notifier, self._drain_seconds, self._changes = notifier, drain_seconds, changes
        self._on_hangup = on_hangup
        self._wanted, self._patience = trio.Event(), trio.CancelScope()
        self._failure, self._exit_status = "", 0
        self.is_stopping = False
        """Whether children have been told to leave: none is started any more."""

    def fail(self, reason: str) -> None:
        """The server cannot go on; the first reason counts."""
        self._failure = self._failure or reason
        self._wanted.set()

    async def wanted(self) -> None:
        """Wait until the server is to end."""
        await self._wanted.wait()

    def exit_status(self) -> int:
        """What the process ends with.

        Raises:
            ServerError: the server has failed.
        """
        if self._failure:
            raise ServerError(self._failure)
        return self._exit_status

    # ------------------------------------------------------------ signals
    async def obey_signals(self, early: list[int]) -> None:
        """Act on signals, first on those that have come before, until cancelled."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as coming:
            async with trio.open_nursery() as nursery:
                for number in early:
                    self._on_signal(number, nursery)
                async for number in coming:
                    self._on_signal(number, nursery)

    def _on_signal(self, number: int, nursery: trio.Nursery) -> None:
        if number == signal.SIGHUP:
            self._on_hangup()
            return
        if self._roster.state == "starting":
            self._wanted.set()  # there is nobody whose speech could be finished
            return
        if self._roster.state == "serving":
            self._roster.state = "draining"
            nursery.start_soon(self._drain)
            return
        log.warning("stopping at once")
        self._patience.cancel()
        self._exit_status = 130 if number == signal.SIGINT else 0
        self._wanted.set()

    # ------------------------------------------------------------ the way there
    async def _drain(self) -> None:
        """Let fronts end what they have begun, for ``drain_seconds`` at most; then end."""
        log.info(
            "draining: no new clients; once more to stop at once",
            seconds=self._drain_seconds,
            sessions=sum(front.front_load.sessions for front in self._roster.fronts),
        )
        self._notifier.stopping()
        for port in self._ports:
            port.close()
        for child in (*self._roster.gateways, *self._roster.fronts):
            self._control.send(child, Drain())
        with trio.move_on_after(self._drain_seconds) as scope:
            while any(front.state != "draining" for front in self._roster.fronts):
                await self._changes.wait()
        if scope.cancelled_caught:
            log.warning("sessions were cut off: drain_seconds are over")
        self._wanted.set()

    async def stop_all(self) -> None:
        """Tell all to leave; who has not within ``STOP_S`` is killed by who has started them."""
        self.is_stopping = True
        self._notifier.stopping()
        for child in self._roster.children:
            if child.ready_at is None:
                child.kill("the server ends")  # it would not listen before it is ready
            else:
                self._control.send(child, Stop())
        self._patience.deadline = trio.current_time() + STOP_S
        with self._patience:
            while self._roster.children:
                await self._changes.wait()
