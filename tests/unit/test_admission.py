# SPDX-License-Identifier: Apache-2.0
"""Who may speak: as many as fit, and not all of them from one address."""

from __future__ import annotations

import pytest

from lipsync_fast.config import Limits
from lipsync_fast.frontend.access.admission import Admission
from lipsync_fast.ipc.status import FrontLoad


def admission(speakers: int, **limits: int) -> Admission:
    made = Admission(Limits(**limits), FrontLoad())
    made.apply_update(speakers, 0)
    return made


def begun(made: Admission, address: str, most: int = 100) -> int:
    """How many of an address may begin, one after the other."""
    count = 0
    while count < most and made.speech_refusal(address) is None:
        made.begin_speech(address)
        count += 1
    return count


@pytest.mark.parametrize(("speakers", "share"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 6), (9, 6)])
def test_one_address_leaves_places_for_others(speakers: int, share: int) -> None:
    made = admission(speakers)
    assert begun(made, "203.0.113.7") == share
    refusal = made.speech_refusal("203.0.113.7")
    assert refusal is not None
    assert ("from this address" in refusal) == (share < speakers)
    assert begun(made, "203.0.113.8") == min(share, speakers - share)
    made.end_speech("203.0.113.7")
    assert begun(made, "203.0.113.7") == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may_take_all(address: str) -> None:
    """Its programs, or a proxy for everybody."""
    assert begun(admission(8), address) == 8


def test_a_configured_share_is_everybodys() -> None:
    assert begun(admission(8, speakers_per_address=2), "127.0.0.1") == 2
    assert begun(admission(8, speakers_per_address=20), "203.0.113.7") == 8


def test_a_network_of_ipv6_is_one_address() -> None:
    made = admission(4)
    assert begun(made, "2001:db8::1", 2) == 2
    assert begun(made, "2001:db8::ffff:2") == 1
    assert begun(made, "2001:db8:0:1::1") == 1


def test_a_proxy_that_does_not_say_who_comes_may_take_all() -> None:
    made = Admission(Limits(), FrontLoad(), ["192.0.2.1"])
    made.apply_update(8, 0)
    assert begun(made, "192.0.2.1") == 8


def test_nobody_begins_while_the_server_leaves() -> None:
    made = admission(2)
    made.draining.set()
    assert made.speech_refusal("127.0.0.1") == "the server is going away"
