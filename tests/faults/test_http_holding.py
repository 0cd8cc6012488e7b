# SPDX-License-Identifier: Apache-2.0
"""Clients that hold connections of a port and ask for nothing, or take nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from raw_websocket import RawWebSocket, all_of
from talking import ALONE

from lipsync_fast.client.local import LocalServer

PATIENCE_S = 60.0
SHARE = 4 + 64
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """One that would wait for a head much longer than a test lasts."""
    config = {
        "limits": {"sessions": 50, "sessions_per_address": 4, "handshake_s": 300.0},
        "engines": ALONE,
    }
    with LocalServer(config) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_has_failed(server: LocalServer) -> Iterator[None]:
    before = [front.pid for front in server.status().fronts]
    yield
    assert [front.pid for front in server.status().fronts] == before
    assert "Traceback" not in server.log()


def dial(server: LocalServer, data: bytes = b"", stream: bool = False) -> socket.socket:
    parts = urlsplit(server.url if stream else server.http_url)
    connection = socket.create_connection((parts.hostname, parts.port), PATIENCE_S)
    connection.sendall(data)
    return connection


def ask(server: LocalServer, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.http_url).netloc, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as open_:
        yield open_


@pytest.mark.parametrize("data", [PREFACE, PREFACE + bytes.fromhex("000000040000000000")])
def test_the_preface_of_http_2_ends_the_connection(server: LocalServer, data: bytes) -> None:
    with dial(server, data) as connection:
        assert all_of(connection) == b""
    with dial(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + data) as connection:
        assert all_of(connection).startswith(b"HTTP/1.1 200 ")


def test_an_upgrade_to_http_2_is_passed_over(server: LocalServer) -> None:
    head = (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    with dial(server, head) as connection:
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"healthy"' in answer


@pytest.mark.parametrize("name", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Upgrade"])
def test_a_head_that_is_no_ascii_is_no_news(server: LocalServer, name: str) -> None:
    """It ends its connection, and writes nothing into the log (``nothing_has_failed``)."""
    head = (
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    )
    with dial(server, head + name.encode() + b": \xff\r\n\r\n") as connection:
        connection.shutdown(socket.SHUT_WR)
        all_of(connection)


@pytest.mark.parametrize("data", [b"", PREFACE[:20], b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_who_only_holds_connections_keeps_nobody_out(
    server: LocalServer, held: contextlib.ExitStack, data: bytes
) -> None:
    """From one address, more than its share: who asks from there gets a place of theirs."""
    connections = [held.enter_context(dial(server, data)) for _ in range(2 * SHARE)]
    for path in ("/", "/health", "/metrics", "/v1/avatars"):
        assert ask(server, path)[0] == 200
    assert all_of(connections[0]) == b"", "the one that has waited longest was closed"


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_who_only_holds_connections_to_a_stream_port_keeps_nobody_out(
    server: LocalServer, held: contextlib.ExitStack, data: bytes
) -> None:
    connections = [held.enter_context(dial(server, data, stream=True)) for _ in range(2 * SHARE)]
    for connection in connections[:SHARE]:
        assert all_of(connection) == b"", "those that have waited longest were closed"
    clients = []
    for _ in range(4):
        client = held.enter_context(RawWebSocket(server.url))
        client.send(json.dumps({"type": "session.start", "idle": False}))
        assert json.loads(str(client.receive()))["type"] == "session.started"
        clients.append(client)
    for connection in [held.enter_context(dial(server, data, stream=True)) for _ in range(SHARE)]:
        connection.close()
    for client in clients:  # who has become a client keeps its place
        client.send(json.dumps({"type": "ping"}))
        assert json.loads(str(client.receive()))["type"] == "pong"


def test_how_it_does_is_told_however_busy_it_is(
    server: LocalServer, held: contextlib.ExitStack
) -> None:
    """All places of an address are at work: what must be known is still told, and nothing else."""
    head = b"POST /v1/avatars/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    connections = [held.enter_context(dial(server, head)) for _ in range(SHARE)]
    full, end = 0, time.monotonic() + PATIENCE_S
    while full < 3:  # one whose head has not been read yet gives its place away
        if ask(server, "/")[0] == 503:
            full += 1
            continue
        full = 0
        connections.append(held.enter_context(dial(server, head)))
        time.sleep(0.1)
        assert time.monotonic() < end
    for _ in range(20):  # places in reserve are free again
        status, body = ask(server, "/health")
        assert (status, b'"healthy"' in body) == (200, True)
        assert ask(server, "/metrics")[0] == 200
    status, body = ask(server, "/v1/avatars")
    assert (status, body[:26]) == (503, b"as many are connected as t")
    said = {all_of(connection)[:13] for connection in connections}
    # A body that does not come is not waited for; who had no place, or gave it away, has no answer.
    assert b"HTTP/1.1 408 " in said
    assert said <= {b"HTTP/1.1 408 ", b"HTTP/1.1 503 ", b""}


def test_what_was_begun_ends_with_its_client(server: LocalServer) -> None:
    """Clients that vanish while a long answer is made give their places back."""
    head = b"GET /models/demo/video.mp4 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(2 * SHARE):
        dial(server, head).close()
    assert ask(server, "/v1/avatars")[0] == 200


def test_clients_of_a_proxy_have_shares_of_their_own() -> None:
    config = {
        "listen": {"proxies": ["127.0.0.1"]},
        "limits": {"sessions": 50, "sessions_per_address": 1},
        "engines": ALONE,
    }
    with LocalServer(config) as server, contextlib.ExitStack() as open_:
        for url in (server.url, server.http_url):
            statuses = []
            for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
                parts = urlsplit(url)
                head = (
                    f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                    f"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                    f"Sec-WebSocket-Version: 13\r\nX-Forwarded-For: 10.9.9.9, {client}\r\n\r\n"
                )
                one = socket.create_connection((parts.hostname, parts.port), PATIENCE_S)
                open_.enter_context(one)
                one.sendall(head.encode())
                answer = one.recv(4096)
                one.settimeout(1.0)
                with contextlib.suppress(TimeoutError):
                    answer += one.recv(4096)  # where there is no room: why, behind the head
                statuses.append(b"too many connections" not in answer)
            assert statuses == [url == server.url, url == server.url, False]
