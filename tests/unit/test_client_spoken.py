# SPDX-License-Identifier: Apache-2.0
"""What an agent says is heard once, in order, with a face or without."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast_client.spoken import Spoken


def went_on(spoken: Spoken[str]) -> list[Any]:
    return list(spoken.faceless())


def test_what_has_a_face_waits_and_what_follows_it_waits_too() -> None:
    spoken: Spoken[str] = Spoken()
    assert not spoken.follow("nothing was said: it is not kept")
    first = spoken.add(b"abcd", face=True)
    assert spoken.add(b"ef", face=False) is first, "an utterance has a face as a whole, or none"
    assert spoken.follow("behind")
    first.ended = True
    second = spoken.add(b"gh", face=False)
    assert second is not first
    assert went_on(spoken) == [], "it is not its turn"
    spoken.heard(3)
    assert list(first.sound) == [b"d", b"ef"]
    assert spoken.shown() == ["behind"]
    assert went_on(spoken) == [b"gh"]
    second.ended = True
    assert went_on(spoken) == [[]]
    assert not spoken


def test_an_utterance_that_nobody_heard_goes_on_without_a_face() -> None:
    spoken: Spoken[str] = Spoken()
    spoken.add(b"ab", face=True).ended = True
    spoken.follow("behind")
    assert spoken.shown() == []
    assert went_on(spoken) == [b"ab", ["behind"]]
    assert spoken.shown() == []


def test_a_server_owes_what_it_was_given_and_an_end() -> None:
    spoken: Spoken[str] = Spoken()
    assert not spoken.owed
    utterance = spoken.add(b"ab", face=True)
    assert spoken.owed
    spoken.heard(2)
    assert not spoken.owed, "it may wait for more"
    utterance.ended = True
    assert spoken.owed, "the end of it"
    spoken.lose_all()
    assert not spoken.owed


def test_the_newest_one_alone_may_be_refused() -> None:
    spoken: Spoken[str] = Spoken()
    spoken.add(b"ab", face=True).ended = True
    spoken.add(b"cd", face=True)
    spoken.lose_newest()
    assert went_on(spoken) == []
    spoken.heard(2)
    spoken.shown()
    assert went_on(spoken) == [b"cd"]


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=20),
    heard=st.lists(st.integers(1, 12), max_size=20),
)
def test_whenever_a_server_is_lost_each_byte_is_heard_once(
    pieces: list[bytes], heard: list[int]
) -> None:
    spoken: Spoken[str] = Spoken()
    for piece in pieces:
        spoken.add(piece, face=True)
    whole, came = b"".join(pieces), min(sum(heard), len(b"".join(pieces)))
    for size in heard:
        spoken.heard(size)
    spoken.lose_all()
    assert whole[:came] + b"".join(went_on(spoken)) == whole
