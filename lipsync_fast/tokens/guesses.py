# SPDX-License-Identifier: Apache-2.0
"""Wrong tokens: how many each client network has shown, and when it has shown too many.

A network may be wrong a few times, and then once in a while. Beyond that, a token from there is not
even looked at, right or wrong: what is answered tells nothing, so guesses are that slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lipsync_fast import canonical
from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.refusals import Refusal

log = get_logger("lipsync.tokens")
Found = TypeVar("Found")
AT_ONCE, EVERY_S = 10, 6.0
"""Wrong tokens in a row, and then one in so long: some ten in a minute."""
LOG_S = 60.0
MOST_NETWORKS = 4096
"""Of more, the one that was wrong the longest ago is forgotten."""
TOO_MANY = Refusal(429, "guesses", "too many wrong tokens came from this address; try again later")


@dataclass(slots=True)
class _Wrong:
    """What a network has shown: how many count now, as of when; those that were not logged yet."""

    count: float
    at: float
    unsaid: int = 0
    said_at: float = float("-inf")


class Guesses:
    """The networks that have shown wrong tokens to this process. One thread.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, _Wrong] = {}  # who was wrong last is the last one

    def judge(
        self, address: str, shown: bool, decide: Callable[[], Found | Refusal]
    ) -> Found | Refusal:
        """What is decided of a request; that too many tokens were guessed, before that.

        Args:
            address: the client's.
            shown: whether it shows a token, where one counts.
            decide: looks at it. That it is wrong (``wrong_token``) counts as a guess; that it has
                run out, or is for another server, does not: such tokens are not made by guessing.
        """
        if not shown:
            return decide()
        network = canonical.network(address)
        if self._count(network) > AT_ONCE - 1:
            self._say(network)
            return TOO_MANY
        found = decide()
        if isinstance(found, Refusal) and found.reason == "wrong_token":
            self._add(network)
        return found

    def _count(self, network: str) -> float:
        wrong = self._wrong.get(network)
        if wrong is None:
            return 0.0
        now = self._clock()
        wrong.count, wrong.at = max(0.0, wrong.count - (now - wrong.at) / EVERY_S), now
        return wrong.count

    def _add(self, network: str) -> None:
        count = self._count(network)
        wrong = self._wrong.pop(network, None) or _Wrong(count, self._clock())
        wrong.count = count + 1
        self._wrong[network] = wrong
        if len(self._wrong) > MOST_NETWORKS:
            del self._wrong[next(iter(self._wrong))]
        self._say(network)

    def _say(self, network: str) -> None:
        """Log it, once a minute at most for each network."""
        wrong, now = self._wrong[network], self._clock()
        wrong.unsaid += 1
        if now - wrong.said_at >= LOG_S:
            log.warning("wrong tokens", address=network, tokens=wrong.unsaid)
            wrong.unsaid, wrong.said_at = 0, now
