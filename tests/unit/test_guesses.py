# SPDX-License-Identifier: Apache-2.0
"""Who guesses tokens is slowed, counted and told of; and who a server is for, by its own name."""

from __future__ import annotations

import socket

import pytest
from entering import entrance, refused

from lipsync_fast import canonical
from lipsync_fast.config import Listen
from lipsync_fast.origins import host_allowed
from lipsync_fast.tokens.guesses import AT_ONCE, EVERY_S, MOST_NETWORKS

LISTEN = Listen(token="right")


class Server:
    """A front's judgement of tokens, by a clock of its own."""

    def __init__(self, listen: Listen = LISTEN) -> None:
        self.now = 0.0
        self.entrance = entrance(listen, clock=lambda: self.now)

    def reason(self, address: str, token: str | None, admin: bool = False) -> str:
        def header(name: str) -> str | None:
            return f"Bearer {token}" if name == "Authorization" and token is not None else None

        found = (
            self.entrance.admit_change(header, "/", address, address)
            if admin
            else self.entrance.admit(header, "/", address)
        )
        why = refused(found)
        return "" if why is None else why.reason


def test_guesses_are_slowed_for_their_address_alone() -> None:
    server = Server()
    assert server.reason("192.0.2.1", "right") == ""
    for k in range(AT_ONCE):
        assert server.reason("192.0.2.1", f"guess {k}") == "wrong_token"
    assert server.reason("192.0.2.1", "one more") == "guesses"
    assert server.reason("192.0.2.1", "right") == "guesses", "an answer would tell"
    assert server.reason("192.0.2.1", None) == "unauthorized", "that guesses nothing"
    assert server.reason("192.0.2.2", "right") == ""
    server.now += EVERY_S + 1
    assert server.reason("192.0.2.1", "again") == "wrong_token"
    assert server.reason("192.0.2.1", "right") == "guesses"
    server.now += EVERY_S + 1
    assert server.reason("192.0.2.1", "right") == ""


def test_one_network_of_ipv6_is_one_guesser() -> None:
    server = Server()
    for k in range(AT_ONCE):
        assert server.reason(f"2001:db8::{k}", "no") == "wrong_token"
    assert server.reason("2001:db8::ffff", "no") == "guesses"
    assert server.reason("2001:db8:0:1::1", "no") == "wrong_token"


def test_a_server_without_a_token_has_nothing_to_guess() -> None:
    server = Server(Listen())
    assert {server.reason("192.0.2.1", "no") for _ in range(AT_ONCE + 5)} == {""}


def test_admin_tokens_are_guessed_too_and_the_other_one_is_no_guess() -> None:
    server = Server(Listen(token="right", admin_token="other"))
    for _ in range(AT_ONCE + 1):
        assert server.reason("192.0.2.1", "right", admin=True) == "admin"
    assert server.reason("192.0.2.1", "other", admin=True) == ""
    for _ in range(AT_ONCE):
        assert server.reason("192.0.2.1", "no", admin=True) == "wrong_token"
    assert server.reason("192.0.2.1", "other", admin=True) == "guesses"


def test_a_line_a_minute_and_bounded_memory(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    for _ in range(500):
        server.reason("192.0.2.1", "no")
    server.now += 61
    server.reason("192.0.2.1", "no")
    for k in range(MOST_NETWORKS + 100):
        server.reason(f"10.0.{k >> 8}.{k & 255}", "no")
    assert len(server.entrance._guesses._wrong) == MOST_NETWORKS
    assert capsys.readouterr().err.count("address=192.0.2.1") <= 2


def test_a_name_that_stands_for_this_machine_is_no_reason_to_answer_to_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        address = {"here.example": "127.0.1.1", "far.example": "192.0.2.7"}[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    canonical.is_bound_here.cache_clear()
    here, far = Listen(host="here.example"), Listen(host="far.example")
    assert not host_allowed(here, "rebound.example:8084")
    assert host_allowed(here, "here.example:8084")
    assert host_allowed(here, "127.0.0.1:8084")
    assert host_allowed(far, "rebound.example:8084")
    canonical.is_bound_here.cache_clear()
