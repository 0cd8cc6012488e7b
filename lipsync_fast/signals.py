# SPDX-License-Identifier: Apache-2.0
"""How one task tells others that something has happened, in two ways; within one thread.

``trio.Event`` happens once. What happens again and again needs a new one each time, and two
questions answered: who is woken, and what becomes of a signal that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

POLL_S = 0.05


class Changes:
    """News for whoever waits at that moment: all of them are woken, and nothing is kept."""

    def __init__(self) -> None:
        self._next = trio.Event()

    def notify(self) -> None:
        """Wake all who wait now."""
        self._next.set()
        self._next = trio.Event()

    async def wait(self) -> None:
        """Until the next ``notify``."""
        await self._next.wait()


class WakeUp:
    """A bell for one who sleeps: rung while nobody waits, it ends the next wait at once."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """End the wait of now, or the next one. More than once before that counts once."""
        self._rung.set()

    def clear(self) -> None:
        """Forget that it was rung: what it was rung for was seen otherwise."""
        if self._rung.is_set():
            self._rung = trio.Event()

    async def wait(self) -> None:
        """Until it is rung, or was since the last wait."""
        await self._rung.wait()
        self._rung = trio.Event()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody signals: looks every ``POLL_S``, and returns at once if it is so."""
    while not condition():
        await trio.sleep(POLL_S)
