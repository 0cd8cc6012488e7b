# SPDX-License-Identifier: Apache-2.0
"""Who keeps a connection to a port where there is no room for all.

A connection *waits* while no request of it is being answered: it has sent nothing yet, half a head,
or is kept open for another request; on a stream port, until it is a WebSocket. Where all places are
taken, or an address has its share, the one that has waited longest there gives its place to the new
one: who asks is served, and who only holds connections loses them. Where none waits, the new one
gets one of a few places in reserve (the HTTP port's), which are for those questions alone that must
be answered however full the server is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection

from lipsync_fast import canonical
from lipsync_fast.frontend.access.network_counts import NetworkCounts

BESIDE_SESSIONS, BESIDE_SHARE = 256, 64
"""Connections beside those of sessions, in all and of one address: the page's own, health checks,
scrapers, and who only begins."""
RESERVED = "reserved"
"""Key of a request's state: its connection has a place in reserve."""


class Place:
    """One connection's place, from ``Places.take`` to ``release``.

    Attributes:
        reserved: it is one of those in reserve.
    """

    def __init__(self, places: Places, network: str, reserved: bool, end: Callable[[], None]):
        self._places, self._network, self._end = places, network, end
        self.reserved = reserved
        self._held = True

    def waits(self) -> None:
        """No request of it is being answered; it has waited since now."""
        if self._held:
            for waiting in self._places._waiting_with(self._network, self.reserved):
                waiting.pop(self, None)
                waiting[self] = None

    def works(self) -> None:
        """A request has come."""
        for waiting in self._places._waiting_with(self._network, self.reserved):
            waiting.pop(self, None)

    def release(self) -> None:
        """It is free; twice is harmless."""
        if self._held:
            self.works()
            self._held = False
            self._places._free(self._network, self.reserved)

    def give_up(self) -> None:
        """End its connection: another one has its place."""
        self.release()
        self._end()


class Places:
    """The places of one front. One thread.

    Args:
        most: in all, beside those in reserve.
        share: of one address at most; of IPv6, of one /64.
        reserve: places in reserve.
        proxies: addresses, or networks, that may have all places: others' clients come from there.
    """

    def __init__(
        self, most: int, share: int, reserve: int, proxies: Collection[str] = frozenset()
    ) -> None:
        self._most, self._share, self._reserve = most, share, reserve
        self._proxies = proxies
        self._of = NetworkCounts()
        self._taken = self._reserved = 0
        # Ordered by how long they have waited.
        self._waiting: dict[Place, None] = {}
        self._waiting_of: defaultdict[str, dict[Place, None]] = defaultdict(dict)
        self._waiting_reserved: dict[Place, None] = {}

    def take(self, address: str, end: Callable[[], None]) -> Place | None:
        """A place for a connection, which waits; None where there is none.

        Args:
            address: its peer's.
            end: closes it at once, where another one is to have its place.
        """
        network = canonical.network(address)
        reserved = not self._has_room(network, canonical.is_among(address, self._proxies))
        if reserved and not self._has_reserve():
            return None
        place = Place(self, network, reserved, end)
        if reserved:
            self._reserved += 1
        else:
            self._taken += 1
            self._of[network] += 1
        place.waits()
        return place

    def _has_room(self, network: str, free: bool) -> bool:
        """Whether there is a place for one more of an address, perhaps since another one ends."""
        has_share = self._of[network] >= self._share and not free
        if has_share or self._taken >= self._most:
            waiting = self._waiting_of[network] if has_share else self._waiting
            if not waiting:
                return False
            next(iter(waiting)).give_up()
        return True

    def _has_reserve(self) -> bool:
        if self._reserved >= self._reserve:
            if not self._waiting_reserved:
                return False
            next(iter(self._waiting_reserved)).give_up()
        return True

    # ------------------------------------------------------------ for Place
    def _waiting_with(self, network: str, reserved: bool) -> list[dict[Place, None]]:
        if reserved:
            return [self._waiting_reserved]
        return [self._waiting, self._waiting_of[network]]

    def _free(self, network: str, reserved: bool) -> None:
        if reserved:
            self._reserved -= 1
            return
        self._taken -= 1
        self._of.give_back(network)
        if network not in self._of:
            self._waiting_of.pop(network, None)
