# SPDX-License-Identifier: Apache-2.0
"""How much each subject and each client network uses, of what it may.

An account is a subject's (``Subject.account``) or a client network's ("at:…"). What it uses in this
front, or gateway, is counted here at once, and told to the supervisor with each heartbeat; what it
uses in others comes back from there, a quarter of a second old or so. Of one front, limits hold
exactly; of several, what comes to two of them within that time may be one too many.

Seconds are of a day of UTC, and connects of a minute of the clock: both begin anew for all at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lipsync_fast import canonical
from lipsync_fast.config import Limits
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import Subject
from lipsync_fast.tokens.usage import DAY_S, MINUTE_S, Use, forget_over

MOST_ACCOUNTS = 65_536
"""Of more, those that do nothing now are forgotten, with what they have used."""
OVER = "over_quota"
Limited = tuple[tuple[str, float], ...]
"""Accounts, and the most that each may have."""


class Accounts:
    """The accounts of one process. One thread.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._limits, self._clock = limits, clock
        self._own: dict[str, Use] = {}
        self._others: dict[str, Use] = {}
        self._changed: set[str] = set()
        self._swept = 0

    # ------------------------------------------------------------ who comes
    def connect(self, subject: Subject, address: str) -> Refusal | None:
        """Count a connect; or why it is one too many."""
        allowed, limits = subject.allowed.connects_per_minute, self._limits
        limited = self._limited(
            subject,
            address,
            limits.connects_per_minute_per_subject if allowed is None else allowed,
            limits.connects_per_minute_per_address,
        )
        if not limited:
            return None
        now = self._clock()
        for account, most in limited:
            if self._total(account).connects >= most:
                words = f"more than {most:g} connects a minute; try again in the next one"
                return Refusal(429, OVER, words, MINUTE_S - now % MINUTE_S)
        for account, _ in limited:
            self._use(account).connects += 1
        return None

    def session_refusal(self, subject: Subject, address: str) -> Refusal | None:
        """Why no connection more may be open; None where one may."""
        at = self._total(_network(address)) if address else Use()
        if at.sessions >= self._limits.sessions_per_address:
            return Refusal(503, "connection", "too many connections from this address")
        if subject.account:
            allowed = subject.allowed.sessions
            most = self._limits.sessions_per_subject if allowed is None else allowed
            if most and self._total(subject.account).sessions >= most:
                return Refusal(429, OVER, f"{most} sessions are open, as many as the token allows")
        return None

    def open(self, subject: Subject, address: str, counts: bool = True) -> Visit:
        """A connection is open; close it in the end.

        Args:
            counts: among the subject's sessions.
        """
        accounts = [subject.account] if subject.account and counts else []
        accounts += [_network(address)] if address else []
        for account in accounts:
            self._use(account).sessions += 1
        return Visit(self, subject, address, accounts)

    def speaking_elsewhere(self, address: str) -> int:
        """How many sessions of an address speak in other fronts."""
        return self._others.get(_network(address), Use()).speaking

    # ------------------------------------------------------------ for Visit
    def seconds_limits(self, subject: Subject, address: str) -> Limited:
        """Accounts whose seconds are counted, with how many they may speak in a day."""
        allowed, limits = subject.allowed.seconds_per_day, self._limits
        return self._limited(
            subject,
            address,
            limits.seconds_per_day_per_subject if allowed is None else allowed,
            limits.seconds_per_day_per_address,
        )

    def speech_refusal(self, subject: Subject, seconds: Limited) -> Refusal | None:
        """Why somebody may not begin to speak; None where that may be."""
        allowed = subject.allowed.speakers
        most = self._limits.speakers_per_subject if allowed is None else allowed
        if subject.account and most and self._total(subject.account).speaking >= most:
            return Refusal(429, OVER, f"{most} sessions speak, as many as the token allows")
        return self.seconds_refusal(seconds)

    def seconds_refusal(self, seconds: Limited) -> Refusal | None:
        """That a day's seconds are used up; None while they are not."""
        for account, most in seconds:
            if self._total(account).spoken_s >= most:
                left = DAY_S - self._clock() % DAY_S
                words = f"the {most:g} s of speech of this day (UTC) are used up"
                return Refusal(429, OVER, words, left)
        return None

    def add(
        self, accounts: list[str], *, sessions: int = 0, speaking: int = 0, spoken_s: float = 0.0
    ) -> None:
        """What accounts use more, or less."""
        for account in accounts:
            use = self._use(account)
            use.sessions += sessions
            use.speaking += speaking
            use.spoken_s += spoken_s

    # ------------------------------------------------------------ other fronts
    def apply_update(self, others: dict[str, Use]) -> None:
        """What accounts use in other fronts, for those where that has changed."""
        self._others |= others

    def changes(self) -> dict[str, Use]:
        """What has changed here since this was called last."""
        made = {account: self._own[account] for account in self._changed if account in self._own}
        self._changed = set()
        minute = int(self._clock() // MINUTE_S)
        if minute != self._swept:
            self._swept = minute
            self._sweep()
        return made

    def _sweep(self) -> None:
        """Forget who does nothing, and has nothing that counts on."""
        now = self._clock()
        for uses in (self._own, self._others):
            forget_over(uses, now)
            for account in [a for a, use in uses.items() if not use.sessions]:
                if len(uses) <= MOST_ACCOUNTS:
                    break
                del uses[account]

    # ------------------------------------------------------------ numbers
    def _limited(
        self, subject: Subject, address: str, of_subject: float, of_address: float
    ) -> Limited:
        of = ((subject.account, of_subject), (_network(address) if address else "", of_address))
        return tuple((account, most) for account, most in of if account and most)

    def _use(self, account: str) -> Use:
        """What an account uses here, of this day and minute; to be changed."""
        self._changed.add(account)
        use = self._own.setdefault(account, Use())
        use.begin(self._clock())
        return use

    def _total(self, account: str) -> Use:
        now, total = self._clock(), Use()
        for uses in (self._own, self._others):
            if account in uses:
                total.add(uses[account], now)
        return total


class Visit:
    """One connection, from its beginning to its end: whose it is, and what it uses.

    Attributes:
        spoken_s: seconds of sound that it has spoken.
        avatars: that were used, in the order in which they were first.
        protocol: that is spoken.
        why: it has ended.
    """

    def __init__(
        self, accounts: Accounts, subject: Subject, address: str, counted: list[str]
    ) -> None:
        self.subject, self.address = subject, address
        self.spoken_s = 0.0
        self.avatars: dict[str, None] = {}
        self.protocol, self.why = "", "the client has gone"
        self._accounts, self._counted = accounts, counted
        self._seconds = accounts.seconds_limits(subject, address)
        self._metered = [account for account, _ in self._seconds]

    def speech_refusal(self) -> Refusal | None:
        """Why it may not begin to speak, as far as its own limits go."""
        return self._accounts.speech_refusal(self.subject, self._seconds)

    def used_up(self) -> Refusal | None:
        """That the seconds of this day are used up; None while they are not."""
        return self._accounts.seconds_refusal(self._seconds)

    def begin_speech(self) -> None:
        """It speaks, until ``end_speech``."""
        self._accounts.add(self._counted, speaking=1)

    def end_speech(self) -> None:
        """It speaks no more."""
        self._accounts.add(self._counted, speaking=-1)

    def spend(self, seconds: float) -> Refusal | None:
        """It has spoken so long; why it may not go on, where it may not."""
        self.spoken_s += seconds
        if not self._metered:
            return None
        self._accounts.add(self._metered, spoken_s=seconds)
        return self._accounts.seconds_refusal(self._seconds)

    def close(self) -> None:
        """It has ended."""
        self._accounts.add(self._counted, sessions=-1)


def _network(address: str) -> str:
    return f"at:{canonical.network(address)}"
