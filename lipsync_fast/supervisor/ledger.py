# SPDX-License-Identifier: Apache-2.0
"""What accounts use in all fronts together; what a front has used outlives it.

Fronts tell what has changed with them. What is told to a front of an account is what all others
use, those that have gone included: of these, what they had used of this day and this minute.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from lipsync_fast.errors import words_of
from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.usage import DAY_S, Use, forget_over

log = get_logger("lipsync.supervisor")
MOST_BYTES = 32 << 20


class _Spoken(msgspec.Struct):
    """The file: seconds of a day, by account."""

    day: int
    spoken_s: dict[str, float]


_spoken = msgspec.json.Decoder(_Spoken)


class Ledger:
    """The accounts of a server. One thread.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._of: dict[str, dict[str, Use]] = {}
        self._gone: dict[str, Use] = {}

    def told(self, front: str, uses: Mapping[str, Use]) -> None:
        """A front has said what accounts use there."""
        self._of.setdefault(front, {}).update(uses)

    def forget(self, front: str) -> set[str]:
        """A front has gone; gives the accounts that it had."""
        uses, now = self._of.pop(front, {}), self._clock()
        for account, use in uses.items():
            use.sessions = use.speaking = 0
            self._gone.setdefault(account, Use()).add(use, now)
        return set(uses)

    def others(self, front: str, accounts: Iterable[str] | None = None) -> dict[str, Use]:
        """What accounts use in all other fronts.

        Args:
            accounts: which; all where None.
        """
        now = self._clock()
        sources = [self._gone, *(uses for name, uses in self._of.items() if name != front)]
        wanted = set().union(*sources) if accounts is None else accounts
        made = {}
        for account in wanted:
            total = Use()
            for uses in sources:
                if account in uses:
                    total.add(uses[account], now)
            made[account] = total
        return made

    # ------------------------------------------------------------ from one run to the next
    def spoken(self) -> bytes:
        """What was spoken today, to be kept; nothing where that is nothing."""
        now, total = self._clock(), Use()
        total.begin(now)
        found: dict[str, float] = {}
        for uses in (self._gone, *self._of.values()):
            for account, use in uses.items():
                if use.day == total.day and use.spoken_s:
                    found[account] = found.get(account, 0.0) + use.spoken_s
        return msgspec.json.encode(_Spoken(total.day, found)) if found else b""

    def restore(self, path: Path) -> None:
        """Take over what was spoken today before this run, as ``keep`` has written it."""
        try:
            with open(path, "rb") as file:
                kept = _spoken.decode(file.read(MOST_BYTES))
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            log.warning("what was spoken today is not known", file=path, reason=words_of(error))
            return
        if kept.day == int(self._clock() // DAY_S):
            for account, seconds in kept.spoken_s.items():
                self._gone[account] = Use(day=kept.day, spoken_s=seconds)

    def sweep(self) -> None:
        """Forget what counts no more."""
        now = self._clock()
        for uses in (self._gone, *self._of.values()):
            forget_over(uses, now)


def keep(path: Path, data: bytes) -> None:
    """Write what ``Ledger.spoken`` gave, in one step; where that cannot be, a line in the log."""
    temporary = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(number, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("what was spoken today is not kept", file=path, reason=words_of(error))
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
