# SPDX-License-Identifier: Apache-2.0
"""What an account uses, as processes tell it each other (``ipc.control.Uses``)."""

from __future__ import annotations

import msgspec

DAY_S, MINUTE_S = 86_400, 60


class Use(msgspec.Struct, array_like=True):
    """What an account uses.

    Attributes:
        sessions: connections now; speaking: of them, those that speak.
        day: since 1970, UTC; spoken_s: seconds spoken in it.
        minute: since 1970; connects: in it.
    """

    sessions: int = 0
    speaking: int = 0
    day: int = 0
    spoken_s: float = 0.0
    minute: int = 0
    connects: int = 0

    def begin(self, now: float) -> None:
        """Begin a new day, and a new minute, where it is one."""
        day, minute = int(now // DAY_S), int(now // MINUTE_S)
        if day != self.day:
            self.day, self.spoken_s = day, 0.0
        if minute != self.minute:
            self.minute, self.connects = minute, 0

    def add(self, other: Use, now: float) -> None:
        """Add what another one uses now, today, and in this minute."""
        self.begin(now)
        self.sessions += other.sessions
        self.speaking += other.speaking
        self.spoken_s += other.spoken_s if other.day == self.day else 0.0
        self.connects += other.connects if other.minute == self.minute else 0

    def is_over(self, now: float) -> bool:
        """Whether nothing of it counts any more."""
        today = self.spoken_s and self.day == int(now // DAY_S)
        lately = self.connects and self.minute == int(now // MINUTE_S)
        return not (self.sessions or self.speaking or today or lately)


def forget_over(uses: dict[str, Use], now: float) -> None:
    """Remove the accounts of which nothing counts any more."""
    for account in [a for a, use in uses.items() if use.is_over(now)]:
        del uses[account]
