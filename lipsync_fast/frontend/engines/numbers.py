# SPDX-License-Identifier: Apache-2.0
"""Numbers that jobs carry, so that engines can tell sessions and sounds of a front apart."""

from __future__ import annotations

import itertools


class JobNumbers:
    """Gives each number once in this process."""

    def __init__(self) -> None:
        self._streams, self._sessions = itertools.count(1), itertools.count(1)

    def stream(self) -> int:
        """A number for a sound that no other sound of this process has."""
        return next(self._streams)

    def session(self) -> int:
        """A number for a session that no other session of this process has."""
        return next(self._sessions)
