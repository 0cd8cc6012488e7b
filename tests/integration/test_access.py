# SPDX-License-Identifier: Apache-2.0
"""Who may do what, on a server with two fronts: what holds for one holds for both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jwt", reason="the extra tokens is not installed")

from serving import Server, server, until
from signed import Issuer, jwks, put
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.tokens.api_keys import add_key, remove_key
from lipsync_fast.tokens.subject import Allowance

SHARED = "the word that all share"
ISSUER = Issuer("HS256")
CONFIG = """
fronts = 2
[engines]
spares = 0
[listen]
token = {token}
[access]
jwt_keys = {jwts}
api_keys = {keys}
jwt_audience = "faces"
[avatars]
folders = [{folder}]
default = "tiny"
[log]
level = "debug"
audit = {audit}
"""


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class World:
    """The server, and those who ask it."""

    def __init__(self, running: Server, status: ServerStatus, key: str, audit: Path) -> None:
        self.running, self.status, self.key, self.audit = running, status, key, audit
        self.keys = audit.with_name("keys.json")
        self.shown: list[str] = [SHARED, key]
        """What must be in no log."""

    def token(self, **claims: Any) -> str:
        made = ISSUER.token(**{"aud": "faces"} | claims)
        self.shown.append(made)
        return made

    def audited(self, **fields: Any) -> list[dict[str, Any]]:
        """Lines of the audit log that have all of these fields."""
        found = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line for line in found if fields.items() <= line.items()]

    def http(self, method: str, path: str, token: str = "") -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of an answer."""
        url = f"http://127.0.0.1:{self.status.http_port}{path}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked = urllib.request.Request(url, None, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as given:
                return given.status, lower(given.headers), given.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, lower(error.headers), error.read()

    def ticket(self, token: str) -> str:
        """A ticket, for whoever shows a token."""
        status, _, body = self.http("POST", "/v1/tickets", token)
        assert status == 201, body
        made = json.loads(body)
        self.shown.append(made["ticket"])
        assert made["expires_s"] == 30
        return str(made["ticket"])

    def enter(self, token: str = "", query: str = "", protocols: tuple[str, ...] = ()) -> str:
        """Open a WebSocket, and close it; the word for why it was refused."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with connect(
                f"ws://127.0.0.1:{self.status.ports[0]}/{query}",
                additional_headers=headers,
                subprotocols=[*protocols] or None,  # type: ignore[list-item]
                compression=None,
                open_timeout=60,
            ) as socket:
                socket.send('{"type": "ping"}')
                socket.recv(60)
                return ""
        except InvalidStatus as error:
            return error.response.headers["X-Lipsync-Fast-Code"]


@pytest.fixture(scope="module")
def world(tiny_avatar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("access")
    avatars = folder / "avatars"
    avatars.mkdir()
    for name in ("tiny", "other"):
        shutil.copytree(tiny_avatar, avatars / name)
    keys = folder / "keys.json"
    key = add_key(keys, "kiosk", Allowance(avatars=("tiny",)))
    config = CONFIG.format(
        token=json.dumps(SHARED),
        jwts=json.dumps(put(folder / "secret", ISSUER.public)),
        keys=json.dumps(str(keys)),
        audit=json.dumps(str(folder / "audit.jsonl")),
        folder=json.dumps(str(avatars)),
    )
    with server(config) as running:
        yield World(running, running.serving(spares=0), key, folder / "audit.jsonl")
        assert running.stop() == 0


def test_each_ticket_lets_in_once_whichever_front_sees_it(world: World) -> None:
    """The kernel gives connections to fronts as it likes: of many, each front has some."""
    for k in range(24):
        ticket = world.ticket([SHARED, world.key, world.token()][k % 3])
        way: dict[str, Any] = {"query": f"?ticket={ticket}"}
        if k % 2:
            way = {"protocols": ("lipsync.v1", f"lipsync.ticket.{ticket}")}
        assert [world.enter(**way) for _ in range(3)] == ["", "used_ticket", "used_ticket"]

    def opened(status: ServerStatus) -> list[int] | None:
        found = [front.load.opened for front in status.fronts]
        return found if sum(found) >= 24 else None

    assert all(world.running.when(opened))


def test_nothing_logs_what_is_shown(world: World) -> None:
    for wrong in ("a wrong word", world.token(seconds=-60), world.token(aud="voices")):
        assert world.enter(wrong)
        assert world.enter(query=f"?ticket={wrong}".replace(" ", "+"))
    assert world.enter(world.token(), f"?token={SHARED}".replace(" ", "+")) == ""
    log = world.running.log
    assert "wrong tokens" in log
    for text in (log, world.audit.read_text()):
        for word in world.shown:
            for part in word.split("."):
                assert part not in text, part


def test_a_token_sees_its_avatars_alone(world: World) -> None:
    status, _, body = world.http("GET", "/v1/avatars", SHARED)
    assert status == 200
    assert {a["name"] for a in json.loads(body)["avatars"]} >= {"tiny", "other"}
    status, _, body = world.http("GET", "/v1/avatars", world.key)
    assert [a["name"] for a in json.loads(body)["avatars"]] == ["tiny"]
    other = world.token(lipsync={"avatars": ["other"]})
    assert json.loads(world.http("GET", "/v1/avatars", other)[2])["default"] == "other"
    assert world.http("GET", "/v1/avatars/tiny", other)[0] == 404
    assert world.http("GET", "/v1/avatars/other", other)[0] == 200


# ---------------------------------------------------------------- limits
@contextmanager
def session(world: World, token: str = "", query: str = "") -> Iterator[ClientConnection]:
    """A session that waits for sound, and shows as fast as it can."""
    with connect(
        f"ws://127.0.0.1:{world.status.ports[0]}/{query}",
        additional_headers={"Authorization": f"Bearer {token}"} if token else {},
        subprotocols=["lipsync.v1"],  # type: ignore[list-item]
        compression=None,
        open_timeout=60,
    ) as made:
        made.send('{"type": "session.start", "pace": "burst"}')
        assert heard(made, "session.started")
        yield made


def heard(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a type."""
    while True:
        message = socket.recv(60)
        if isinstance(message, str):
            told: dict[str, Any] = json.loads(message)
            if told["type"] == kind:
                return told


def tone(seconds: float) -> bytes:
    return b"\x00\x10\x00\xf0" * int(8_000 * seconds)


def test_limits_hold_for_both_fronts(world: World) -> None:
    """What one front has counted, the other one knows soon: until then it lets in."""
    token = world.token(sub="bob", lipsync={"sessions": 1, "seconds_per_day": 3.0})
    with session(world, token) as one:
        until(lambda: {world.enter(token) for _ in range(4)} == {"over_quota"})
        one.send(tone(2.0))
        one.send('{"type": "utterance.end"}')
        assert heard(one, "utterance.ended")["reason"] == "end"
        one.send(tone(2.0))
        assert heard(one, "utterance.ended")["reason"] == "quiet"
        one.send(tone(0.5))
        over = heard(one, "session.overloaded")
        assert over["code"] == "over_quota"
        assert 0 < over["retry_after_ms"] <= 86_400_000
    until(lambda: {world.enter(token) for _ in range(4)} == {""})
    often = world.token(sub="eve", lipsync={"connects_per_minute": 2})
    until(lambda: {world.enter(often) for _ in range(6)} == {"over_quota"})
    status, headers, _ = world.http("GET", "/v1/avatars", often)
    if status == 429:  # a minute has not begun meanwhile
        assert 0 < int(headers["retry-after"]) <= 60
        assert headers["x-lipsync-fast-code"] == "over_quota"


def test_what_was_spoken_outlives_the_front_that_counted_it(world: World) -> None:
    token = world.token(sub="carl", lipsync={"seconds_per_day": 1.0})
    with session(world, token) as one:
        one.send(tone(1.5))
        heard(one, "utterance.ended")
    before = [front.pid for front in world.running.status().fronts]
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    world.running.when(
        lambda s: (
            all(f.state == "ready" and f.pid not in before for f in s.fronts)
            and any(e.state == "ready" for e in s.engines)
        )
    )
    with session(world, token) as one:
        one.send(tone(0.5))
        assert heard(one, "session.overloaded")["code"] == "over_quota"


def test_it_is_written_down_who_was_there(world: World) -> None:
    token = world.token(sub="dora", lipsync={"seconds_per_day": 1.0})
    with session(world, token) as one:
        one.send(tone(1.5))
        heard(one, "utterance.ended")
        one.send('{"type": "session.update", "avatar": "other"}')
        heard(one, "session.started")
        one.send('{"type": "session.stop"}')
        with pytest.raises(ConnectionClosed):
            heard(one, "nothing more")
    (ended,) = until(lambda: world.audited(event="ended", subject="dora"))
    assert (ended["by"], ended["address"], ended["protocol"]) == ("jwt", "127.0.0.1", "lipsync.v1")
    assert (ended["avatars"], ended["why"]) == (["tiny", "other"], "stopped")
    assert ended["spoken_s"] == pytest.approx(1.5, abs=0.5)
    assert ended["seconds"] > 0
    assert world.audited(event="begun", session=ended["session"], subject="dora")
    kiosk = world.audited(event="ended", subject="kiosk", by="key")
    assert kiosk
    assert all(world.key.split("_")[1] == line["key"] for line in kiosk)
    assert world.audited(event="ticket", subject="kiosk")
    refused = world.audited(event="refused", reason="used_ticket")
    assert refused[0]["times"] == 1


def test_a_key_that_is_revoked_ends_what_was_begun_with_it(world: World) -> None:
    key = add_key(world.keys, "guest", Allowance())
    world.shown.append(key)
    until(lambda: world.enter(key) == "")
    with session(world, key) as one, session(world, world.key) as other:
        remove_key(world.keys, "guest")
        with pytest.raises(ConnectionClosed) as closed:
            heard(one, "nothing more")
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the key was revoked")
        assert until(lambda: world.enter(key)) == "wrong_token"
        other.send('{"type": "ping"}')
        assert heard(other, "pong")
    assert until(lambda: world.audited(event="ended", subject="guest", why="the key was revoked"))


def test_a_key_that_signs_no_more_ends_what_its_tokens_have_begun(world: World) -> None:
    file, other = world.keys.with_name("secret"), Issuer("HS256", "other")
    put(file, jwks(ISSUER, other))
    token = other.token("eve", aud="faces")
    world.shown.append(token)
    until(lambda: world.enter(token) == "")
    query = f"?ticket={world.ticket(token)}"
    with (
        session(world, token) as one,
        session(world, query=query) as two,
        session(world, world.token()) as stays,
    ):
        put(file, ISSUER.public)
        for socket in (one, two):
            with pytest.raises(ConnectionClosed) as closed:
                heard(socket, "nothing more")
            said = closed.value.rcvd
            assert said is not None
            assert (said.code, said.reason) == (1008, "the key was revoked")
        assert until(lambda: world.enter(token)) == "wrong_token"
        stays.send('{"type": "ping"}')
        assert heard(stays, "pong")
    ended = {"event": "ended", "subject": "eve", "why": "the key was revoked"}
    assert until(lambda: len(world.audited(**ended)) == 2)
