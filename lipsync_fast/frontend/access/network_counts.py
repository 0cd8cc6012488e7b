# SPDX-License-Identifier: Apache-2.0
"""How much of something each client network has: connections, places, sessions that speak."""

from __future__ import annotations

from collections import Counter


class NetworkCounts(Counter[str]):
    """Counts by ``canonical.network``; networks that have nothing are forgotten."""

    def give_back(self, network: str) -> None:
        """A network has one less of it."""
        self[network] -= 1
        if not self[network]:
            del self[network]
