# SPDX-License-Identifier: Apache-2.0
"""Why avatars could not be had lately."""

from __future__ import annotations

import time

ERROR_S = 10.0
"""How long a failure is told; who asks after that makes it be tried again."""


class RecentErrors:
    """Failures by the names or keys of avatars; kept until they are asked for when old.

    Args:
        most: that are kept, the newest; None for all.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._errors: dict[str, tuple[str, float]] = {}

    def add(self, name: str, reason: str) -> None:
        """It could not be had just now."""
        while self._most is not None and len(self._errors) >= self._most:
            del self._errors[next(iter(self._errors))]
        self._errors[name] = reason, time.monotonic()

    def forget(self, name: str) -> None:
        """It can be had, or is tried again."""
        self._errors.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._errors

    def reason(self, name: str) -> str | None:
        """Why it could not be had, in words; None where that is not known."""
        error = self._errors.get(name)
        return None if error is None else error[0]

    def current(self) -> dict[str, str]:
        """Names with reasons; older ones are forgotten with this call."""
        now = time.monotonic()
        self._errors = {n: e for n, e in self._errors.items() if now - e[1] < ERROR_S}
        return {name: reason for name, (reason, _) in self._errors.items()}
