# SPDX-License-Identifier: Apache-2.0
"""A ticket lets somebody in once, whichever front sees it, for half a minute."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from entering import refused
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.config import Listen, ServeConfig
from lipsync_fast.errors import LipsyncError, TokenError
from lipsync_fast.frontend.access.entrance import Entrance
from lipsync_fast.tokens import tickets as module
from lipsync_fast.tokens.accounts import Accounts
from lipsync_fast.tokens.guesses import Guesses
from lipsync_fast.tokens.identities import Identities
from lipsync_fast.tokens.subject import Allowance, Subject
from lipsync_fast.tokens.tickets import LIFE_S, RECORDS, Tickets, new_memory

ANNA = Subject(name="anna", by="jwt", allowed=Allowance(avatars=("demo",), sessions=2))


@dataclass
class Server:
    """What fronts share, and a clock."""

    now: float = 1_000_000.0
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    memory: int = field(default_factory=new_memory)
    fronts: list[Tickets] = field(default_factory=list)

    def front(self) -> Tickets:
        made = Tickets(self.secret, os.dup(self.memory), lambda: self.now)
        self.fronts.append(made)
        return made


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    for front in made.fronts:
        front.close()
    os.close(made.memory)


def why(front: Tickets, ticket: str) -> str:
    try:
        front.redeem(ticket.encode())
    except TokenError as error:
        return error.reason
    return ""


def test_a_ticket_is_good_once_at_any_front(server: Server) -> None:
    one, other = server.front(), server.front()
    ticket = one.issue(ANNA)
    assert other.redeem(ticket.encode()) == ANNA
    assert why(one, ticket) == why(other, ticket) == "used_ticket"
    assert why(server.front(), ticket) == "used_ticket", "a front that came later"
    assert why(one, other.issue(ANNA)) == ""


def test_a_ticket_ends(server: Server) -> None:
    front = server.front()
    ticket = front.issue(ANNA)
    server.now += LIFE_S - 1
    assert why(front, front.issue(ANNA)) == ""
    server.now += 1
    assert why(front, ticket) == "expired"


def test_no_one_else_makes_tickets(server: Server) -> None:
    front, stranger = server.front(), Tickets.alone()
    ticket = front.issue(ANNA)
    body, _, mac = ticket.partition(".")
    for forged in (
        stranger.issue(ANNA),
        f"{body}.{mac[:-2]}",
        f"{body}x.{mac}",
        f"{body}.{mac}=",
        f"{body}.",
        body,
        f".{mac}",
        ".",
        "",
        "ä",
    ):
        assert why(front, forged) == "wrong_token", forged
    assert why(front, ticket) == "", "what was tried has not used it up"
    stranger.close()


@given(st.binary(max_size=200))
def test_nonsense_is_no_ticket(data: bytes) -> None:
    front = Tickets.alone()
    with pytest.raises(TokenError):
        front.redeem(data)
    front.close()


FRONT = """
import sys
from lipsync_fast.errors import TokenError
from lipsync_fast.tokens.tickets import Tickets
secret, fd, now = sys.argv[1:]
front = Tickets(bytes.fromhex(secret), int(fd), lambda: float(now))
print("here", flush=True)
for ticket in sys.stdin.read().split():
    try:
        front.redeem(ticket.encode())
    except TokenError as error:
        assert error.reason == "used_ticket"
    else:
        print(ticket)
"""
"""A process that has all tickets of its standard input let in, and says which were."""


def test_many_at_once_are_each_good_once(server: Server) -> None:
    made = [server.front().issue(ANNA) for _ in range(200)]
    command = [sys.executable, "-P", "-c", FRONT, server.secret.hex(), str(server.memory)]
    fronts = [
        subprocess.Popen(
            [*command, str(server.now)],
            pass_fds=[server.memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for front in fronts:
        assert front.stdout is not None
        assert front.stdout.readline() == "here\n"
    for front in fronts:
        assert front.stdin is not None
        front.stdin.write(" ".join(made))
        front.stdin.close()
    let_in: list[str] = []
    for front in fronts:
        assert front.stdout is not None
        with front.stdout:
            let_in += front.stdout.read().split()
        assert front.wait(60) == 0
    assert sorted(let_in) == sorted(made)


def test_where_there_is_no_room_a_ticket_is_not_taken(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORDS", 3)
    front = server.front()
    tickets = [front.issue(ANNA) for _ in range(4)]
    assert [why(front, ticket) for ticket in tickets] == ["", "", "", "used_ticket"]
    server.now += LIFE_S
    assert why(front, front.issue(ANNA)) == "", "their places are free again"
    assert RECORDS > 3


def test_too_many_names_for_a_ticket(server: Server) -> None:
    names = tuple(f"an avatar with a long name {n}" for n in range(200))
    with pytest.raises(LipsyncError, match="too much by name"):
        server.front().issue(Subject(name="a", by="key", allowed=Allowance(avatars=names)))


def test_a_ticket_opens_websockets_alone(server: Server) -> None:
    front = server.front()
    config = ServeConfig(listen=Listen(token="all"))
    door = Entrance(config.listen, Identities(config, front), Guesses(), Accounts(config.limits))

    def reason(path: str, protocols: str | None = None, upgrade: bool = True) -> str:
        head = {"Host": "127.0.0.1", "Sec-WebSocket-Protocol": protocols}
        found = door.admit(head.get, path, "192.0.2.1", upgrade)
        refusal = refused(found)
        return found.account if refusal is None else refusal.reason  # type: ignore[union-attr]

    ticket = front.issue(ANNA)
    assert reason(f"/?ticket={ticket}", upgrade=False) == "unauthorized"
    assert reason("/", f"lipsync.ticket.{ticket}", upgrade=False) == "unauthorized"
    assert reason(f"/?ticket={ticket}") == "jwt:anna"
    assert reason(f"/?ticket={ticket}") == "used_ticket"
    assert reason("/", f"lipsync.v1, lipsync.ticket.{front.issue(ANNA)}") == "jwt:anna"
    assert reason("/?ticket=no") == "wrong_token"
