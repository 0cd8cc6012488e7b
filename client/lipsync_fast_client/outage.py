# SPDX-License-Identifier: Apache-2.0
"""How long and how often a lost server is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from lipsync_fast_client.arguments import SHOWN, is_seconds

FIRST_S, LONGEST_S = 0.3, 30.0
"""Pauses between attempts: the first one, and what they grow to."""
PATIENCE_S = 300.0
"""How long it is tried where nobody has said so."""
MOST_DOUBLINGS = 16


def patience(reconnect: object) -> float | None:
    """The seconds that ``reconnect`` means; None for not at all.

    Raises:
        ValueError: it means nothing.
    """
    if reconnect is False:
        return None
    if reconnect is True:
        return PATIENCE_S
    if not is_seconds(reconnect):
        raise ValueError(
            f"reconnect {repr(reconnect)[:SHOWN]}: expected True, False, or seconds, more than 0"
        )
    return float(reconnect)  # type: ignore[arg-type]


class Outage:
    """From a lost connection to the next one.

    Attributes:
        attempts: to come back, so far.
        retry_after_s: what the server said last.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._seconds, self._clock, self._chance = seconds, clock, chance
        self._begun = clock()
        self._due: float | None = None
        self.attempts = 0
        self.retry_after_s: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return self._clock() - self._begun

    @property
    def left_s(self) -> float:
        """What is left of the time that it may last."""
        return max(0.0, self._seconds - self.seconds)

    def wait_s(self) -> float:
        """How long until the next attempt: the same moment, however often it is asked for."""
        if self._due is None:
            self._due = self._clock() + self.pause_s()
        return max(0.0, self._due - self._clock())

    def attempt(self) -> None:
        """It is tried now."""
        self.attempts += 1
        self._due = None

    def pause_s(self) -> float:
        """How long a pause before the next attempt is to be.

        From half of the pause to all of it, by chance: the clients of a server that has restarted
        do not come all at once. What the server asked for is added, none of it beyond what is left.
        """
        longest = min(FIRST_S * float(2 ** min(self.attempts, MOST_DOUBLINGS)), LONGEST_S)
        wanted = longest * (0.5 + 0.5 * self._chance()) + (self.retry_after_s or 0.0)
        return min(wanted, self.left_s)
