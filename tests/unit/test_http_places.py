# SPDX-License-Identifier: Apache-2.0
"""Who keeps a connection to the HTTP port where there is no room for all, and whose it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast import canonical
from lipsync_fast.config import Listen
from lipsync_fast.config_load import load
from lipsync_fast.errors import ConfigError
from lipsync_fast.frontend.access.places import Place, Places
from lipsync_fast.origins import client_address


class Caller:
    """A connection that notes whether it was ended."""

    def __init__(self, places: Places, address: str) -> None:
        self.ended = False
        self.place = places.take(address, self.end)

    def end(self) -> None:
        self.ended = True

    @property
    def held(self) -> Place:
        assert self.place is not None
        return self.place


def test_who_has_waited_longest_makes_room() -> None:
    places = Places(3, 3, 1)
    first, second, third = (Caller(places, f"10.0.0.{k}") for k in range(3))
    first.held.works()
    first.held.waits()  # it has waited since now
    fourth = Caller(places, "10.0.0.9")
    assert [c.ended for c in (first, second, third)] == [False, True, False]
    assert not fourth.held.reserved
    second.held.release()  # of a connection that has ended: harmless
    assert Caller(places, "10.0.0.9").place is not None
    assert third.ended


def test_who_is_served_keeps_its_place_and_the_reserve_is_left() -> None:
    places = Places(2, 2, 1)
    served = [Caller(places, f"10.0.0.{k}") for k in range(2)]
    for caller in served:
        caller.held.works()
    asks = Caller(places, "10.0.0.8")
    assert asks.held.reserved
    again = Caller(places, "10.0.0.9")
    assert asks.ended, "in the reserve, too"
    again.held.works()
    assert Caller(places, "10.0.0.9").place is None
    assert not any(c.ended for c in served)
    again.held.release()
    served[0].held.release()
    assert not Caller(places, "10.0.0.9").held.reserved


def test_an_address_has_its_share_and_takes_nobodys() -> None:
    places = Places(10, 2, 1)
    other = Caller(places, "10.0.0.1")
    greedy = [Caller(places, "10.0.0.2") for _ in range(5)]
    assert [c.ended for c in greedy] == [True, True, True, False, False]
    assert not other.ended
    for caller in greedy[3:]:
        caller.held.works()
    assert Caller(places, "10.0.0.2").held.reserved
    assert not Caller(places, "10.0.0.3").held.reserved


def test_a_proxy_of_ours_may_have_all_places() -> None:
    places = Places(4, 1, 1, ["127.0.0.1"])
    assert not any(Caller(places, "127.0.0.1").held.reserved for _ in range(4))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("twrg"), st.integers(0, 30))))
def test_places_are_neither_lost_nor_made(steps: list[tuple[int, str, int]]) -> None:
    """Whatever happens, in whatever order: never more than there are; all are free at the end."""
    places, callers = Places(4, 2, 1), []
    for address, what, which in steps:
        if what == "t":
            callers.append(Caller(places, f"10.0.0.{address}"))
        elif callers and (place := callers[which % len(callers)].place) is not None:
            {"w": place.waits, "r": place.works, "g": place.release}[what]()
        there = [c.place for c in callers if c.place is not None and c.place._held]
        assert sum(not place.reserved for place in there) <= 4
        assert sum(place.reserved for place in there) <= 1
    for caller in callers:
        if caller.place is not None:
            caller.place.release()
    assert sum(not Caller(places, f"10.0.1.{k}").held.reserved for k in range(4)) == 4


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert canonical.network(address) == network


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),  # the first one the client wrote
        ("127.0.0.1", "192.0.2.7, 10.0.0.2", "192.0.2.7"),  # two proxies of ours
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "unknown", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("10.42.7.9", "192.0.2.7, 10.42.0.3", "192.0.2.7"),  # of a network of ours
        ("10.43.7.9", "192.0.2.7", "10.43.7.9"),
        ("2001:db8:5::9", "192.0.2.7", "192.0.2.7"),
        ("192.0.2.9", "192.0.2.7", "192.0.2.9"),  # no proxy of ours: it may say what it likes
    ],
)
def test_whom_a_proxy_speaks_for(peer: str, forwarded: str | None, client: str) -> None:
    listen = Listen(proxies=("127.0.0.1", "10.0.0.2", "10.42.0.0/16", "2001:db8:5::/48"))
    assert client_address(listen, peer, forwarded) == client


def test_proxies_may_have_all_places() -> None:
    places = Places(8, 2, 0, ["10.42.0.0/16"])
    held = [places.take(address, lambda: None) for address in ["10.42.0.3"] * 3 + ["10.43.0.3"] * 3]
    for place in held:
        if place is not None:
            place.works()
    assert places.take("10.42.0.3", lambda: None) is not None
    assert places.take("10.43.0.3", lambda: None) is None, "it has its share"


def test_proxies_are_addresses() -> None:
    with pytest.raises(ConfigError, match=r"'10.0.0.1/8' is no network"):
        load(environ={"LIPSYNC_FAST_LISTEN_PROXIES": "10.0.0.1/8"})
    with pytest.raises(ConfigError, match=r"listen.proxies: 'proxy.example.org' is no IP address"):
        load(environ={"LIPSYNC_FAST_LISTEN_PROXIES": "127.0.0.1,proxy.example.org"})
