# SPDX-License-Identifier: Apache-2.0
"""The HTTP port of a real server, over raw sockets and http.client."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from raw_websocket import all_of
from talking import ALONE, GUARDED, Serve

from lipsync_fast.client.local import LocalServer

PATIENCE_S = 60.0


class Answer:
    """What a request was answered with."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


def get(server: LocalServer, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask the server."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(urlsplit(server.http_url).netloc, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, told, answer.read())


def dial(server: LocalServer) -> socket.socket:
    """A bare connection to the HTTP port."""
    parts = urlsplit(server.http_url)
    return socket.create_connection((parts.hostname, parts.port), PATIENCE_S)


def upgrade(server: LocalServer, *headers: str, path: str = "/ws") -> tuple[socket.socket, str]:
    """Ask for a WebSocket; the connection and the head of the answer."""
    connection = dial(server)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *headers,
    ]
    if not any(h.lower().startswith("host:") for h in headers):
        lines.append(f"Host: {urlsplit(server.http_url).netloc}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(1)
        if not piece:
            break
        head += piece
    return connection, head.decode("latin-1").lower()


def frame(opcode: int, data: bytes, final: bool = True) -> bytes:
    """A masked WebSocket frame."""
    size = len(data)
    if size < 126:
        length = struct.pack("!B", 0x80 | size)
    elif size < 1 << 16:
        length = struct.pack("!BH", 0x80 | 126, size)
    else:
        length = struct.pack("!BQ", 0x80 | 127, size)
    return bytes([0x80 * final | opcode]) + length + bytes(4) + data


def message(connection: socket.socket) -> tuple[int, bytes]:
    """The next frame's opcode and payload, pings left out."""

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = connection.recv(count - len(data))
            assert piece, "the server has hung up"
            data += piece
        return data

    while True:
        head = exactly(2)
        size = head[1]
        if size == 126:
            size = struct.unpack("!H", exactly(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", exactly(8))[0]
        data = exactly(size)
        if head[0] & 15 != 9:
            return head[0] & 15, data


# ---------------------------------------------------------------- what it tells
def test_health_is_what_old_clients_read(server: LocalServer) -> None:
    answer = get(server, "/health")
    assert answer.status == 200
    body = answer.json
    assert set(body) == {"healthy", "total_backends", "healthy_count", "backends"}
    assert body["healthy"] is True
    assert body["healthy_count"] >= 1
    assert body["total_backends"] == len(body["backends"])
    for backend in body["backends"]:
        assert set(backend) == {"address", "healthy", "total_requests", "error_count"}


def test_stats_and_metrics_tell_of_the_whole_server(server: LocalServer) -> None:
    status = server.status()
    found = get(server, "/stats")
    end = time.monotonic() + PATIENCE_S
    while found.status == 503 and time.monotonic() < end:
        assert int(found.headers["retry-after"]) >= 1
        found = get(server, "/stats")
    assert found.json["pid"] == status.pid
    assert found.json["engines"][0]["pid"] == status.engines[0].pid
    text = get(server, "/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"lipsync_fast_up 1.0" in text.body
    assert f'engine="{status.engines[0].name}"'.encode() in text.body


def test_avatars_with_thumbnails(server: LocalServer) -> None:
    listed = get(server, "/v1/avatars").json
    assert listed["default"] == "demo"
    demo = listed["avatars"][0]
    assert (demo["name"], demo["width"], demo["height"], demo["fps"]) == ("demo", 1280, 720, 25)
    picture = get(server, demo["thumbnail"])
    assert picture.status == 200
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.body[:2] == b"\xff\xd8"
    assert picture.body[-2:] == b"\xff\xd9"
    again = get(server, demo["thumbnail"], If_None_Match=picture.headers["etag"])
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/avatars/nobody/thumbnail.jpg",
        "/v1/avatars/..%2f..%2fetc/thumbnail.jpg",
        "/v1/avatars/%00/thumbnail.jpg",
        "/models/nobody/video.mp4",
        "/assets/..%2fapp.py",
        "/assets/",
        "/nothing",
    ],
)
def test_what_is_not_there(server: LocalServer, path: str) -> None:
    answer = get(server, path)
    assert answer.status == 404
    assert b"/" not in answer.body.replace(b"application/json", b"")  # tells no folder


def test_the_sample_in_ranges(server: LocalServer) -> None:
    whole = get(server, "/v1/sample.wav")
    assert whole.body[:4] == b"RIFF"
    part = get(server, "/v1/sample.wav", Range="bytes=100-299")
    assert (part.status, part.body) == (206, whole.body[100:300])
    outside = get(server, "/v1/sample.wav", Range=f"bytes={len(whole.body)}-")
    assert outside.status == 416


@pytest.mark.parametrize("path", ["/", "/health", "/v1/sample.wav", "/assets/main.js", "/nowhere"])
def test_the_connection_ends_where_that_was_asked(server: LocalServer, path: str) -> None:
    with dial(server) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        while connection.recv(65_536):  # times out where the server does not close
            pass


def test_every_described_status_is_true(server: LocalServer) -> None:
    described = get(server, "/openapi.json").json
    for path, operations in described["paths"].items():
        if path.startswith("/models"):
            continue  # takes long; see the tests of videos
        real = path.replace("{name}", "demo" if path.startswith("/v1") else "main.js")
        if "get" not in operations:
            continue
        status = get(server, real).status
        assert str(status) in operations["get"]["responses"], (path, status)
        foreign = get(server, real, Host="evil.example")
        assert foreign.status == 403, path


def test_only_reading_is_possible(server: LocalServer) -> None:
    for method in ("POST", "PUT", "DELETE"):
        refused = get(server, "/v1/avatars", method)
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert get(server, "/", "HEAD").status == 200
    assert get(server, "/", "HEAD").body == b""


# ---------------------------------------------------------------- the page
def test_options_says_what_is_allowed_and_that_is_so(server: LocalServer) -> None:
    for path, operations in get(server, "/openapi.json").json["paths"].items():
        real = path.replace("{name}", "nobody")
        told = get(server, real, "OPTIONS")
        described = {method.upper() for method in operations} | {"OPTIONS"}
        described |= {"HEAD"} if "GET" in described else set()
        assert (told.status, set(told.headers["allow"].split(", "))) == (204, described), path
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}:
            if path != "/models/{name}/video.mp4":
                assert (get(server, real, method).status != 405) == (method in described), method
    assert "access-control-allow-methods" not in told.headers
    assert get(server, "/stats", "OPTIONS", Origin="https://evil.example").status == 403


def test_a_friends_page_may_ask_first(shared_server: Serve) -> None:
    """A browser asks without the token whether it may send it."""
    guarded = shared_server(GUARDED)
    asked = {"Origin": "https://good.example", "Access_Control_Request_Method": "POST"}
    told = get(guarded, "/v1/avatars/demo", "OPTIONS", **asked)
    assert told.status == 204
    assert told.headers["access-control-allow-origin"] == "https://good.example"
    assert {"POST", "DELETE"} <= set(told.headers["access-control-allow-methods"].split(", "))
    assert "Authorization" in told.headers["access-control-allow-headers"]
    assert get(guarded, "/v1/avatars", **asked).status == 401


def test_what_is_wrong_with_a_change_has_the_form_that_is_described(server: LocalServer) -> None:
    """The same for a name that cannot be and for one that nobody has."""
    for name in ("nobody", "x" * 1001, "%00"):
        answer = get(server, f"/v1/avatars/{name}", "DELETE")
        assert answer.status == 404
        assert set(answer.json) == {"name", "version", "state", "reason"}
        assert (answer.json["state"], answer.json["version"]) == ("missing", 0)


def test_a_websocket_elsewhere_is_told_where_it_is(server: LocalServer) -> None:
    for path in ("/", "/ws/", "/stream", "/v1/avatars"):
        connection, head = upgrade(server, path=path)
        with connection:
            assert head.startswith("http/1.1 404"), (path, head)
            said = connection.recv(4096).decode()
            assert said == "WebSocket is at /ws of this port, and at any path of the stream ports\n"


def test_no_websocket_at_ws_is_told(server: LocalServer) -> None:
    answer = get(server, "/ws")
    assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
    assert "upgrade" in answer.json["error"]


def test_the_page_brings_all_it_needs(server: LocalServer) -> None:
    page = get(server, "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    wanted = {"main.js", "style.css", "icon.svg"}
    seen: set[str] = set()
    while wanted - seen:
        name = (wanted - seen).pop()
        seen.add(name)
        found = get(server, f"/assets/{name}")
        assert found.status == 200, name
        text = found.body.decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        wanted |= {part.split('"')[0] for part in text.split('from "./')[1:]}
    assert {"player.js", "session.js", "sources.js"} <= seen
    assert b"http" not in page.body.replace(b'href="', b"")


# ---------------------------------------------------------------- /ws
def test_old_and_new_protocols_share_the_path(server: LocalServer) -> None:
    connection, head = upgrade(server)
    with connection:
        assert head.startswith("http/1.1 101 ")
        assert "sec-websocket-protocol" not in head
        connection.sendall(frame(1, b'{"type":"list_models"}'))
        assert b'"demo"' in message(connection)[1]
    offer = "Sec-WebSocket-Protocol: chat, lipsync.v1"
    compression = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    connection, head = upgrade(server, offer, compression)
    with connection:
        assert "sec-websocket-protocol: lipsync.v1" in head
        assert "sec-websocket-extensions" not in head  # JPEGs are not compressed again
        connection.sendall(frame(1, b'{"type":"session.start"}'))
        assert b'"session.started"' in message(connection)[1]


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: https://evil.example",),
        ("Origin: null",),
        ("Host: evil.example",),
    ],
)
def test_foreign_pages_cannot_open_it(server: LocalServer, headers: tuple[str, ...]) -> None:
    connection, head = upgrade(server, *headers)
    with connection:
        assert head.startswith("http/1.1 403 ")


def test_the_servers_own_page_can(server: LocalServer) -> None:
    connection, head = upgrade(server, f"Origin: {server.http_url}")
    with connection:
        assert head.startswith("http/1.1 101 ")


@pytest.mark.parametrize(
    "headers",
    [
        ("Sec-WebSocket-Protocol: \xe4\xf6",),
        ("Sec-WebSocket-Extensions: ;;;=",),
        ("Sec-WebSocket-Key: not base 64",),
        ("Upgrade: h2c",),
    ],
)
def test_strange_upgrades_hurt_nobody(server: LocalServer, headers: tuple[str, ...]) -> None:
    connection, _ = upgrade(server, *headers)
    connection.close()
    assert get(server, "/health").status == 200


def test_a_message_that_is_too_large_ends_the_connection(server: LocalServer) -> None:
    connection, _ = upgrade(server)
    with connection:
        piece = bytes(1 << 20)
        sent = 0
        with contextlib.suppress(ConnectionError):
            connection.sendall(frame(2, piece, final=False))
            while sent < 200:  # never an end: the server hangs up, or this would be kept
                connection.sendall(frame(0, piece, final=False))
                sent += 1
        assert sent < 200
        connection.settimeout(PATIENCE_S)
        all_of(connection)
    assert get(server, "/health").status == 200


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (frame(1, b"\xff\xfe"), 1007),
        (frame(3, b"of no kind"), 1002),
        (frame(0, b"goes on with nothing"), 1002),
        (frame(9, bytes(126)), 1002),
        (b"\x82\x01x", 1002),
    ],
    ids=["text that is none", "unknown opcode", "no beginning", "long ping", "not masked"],
)
def test_what_breaks_the_protocol_is_told_so(server: LocalServer, broken: bytes, code: int) -> None:
    connection, _ = upgrade(server)
    with connection:
        connection.sendall(broken)
        opcode, data = message(connection)
        assert (opcode, struct.unpack("!H", data[:2])[0]) == (8, code)
        all_of(connection)
    assert get(server, "/health").status == 200


def test_closing_is_answered(server: LocalServer) -> None:
    connection, _ = upgrade(server, "Sec-WebSocket-Protocol: lipsync.v1")
    with connection:
        connection.sendall(frame(1, b'{"type":"session.start"}'))
        connection.sendall(frame(1, b'{"type":"session.stop"}'))
        opcode, data = message(connection)
        while opcode != 8:  # the avatar's own pictures may come first
            opcode, data = message(connection)
        assert struct.unpack("!H", data[:2])[0] == 1000
        connection.sendall(frame(8, struct.pack("!H", 1000)))
        assert all_of(connection) == b""


# ---------------------------------------------------------------- bounds and refusals
@pytest.fixture(scope="module")
def strict() -> Iterator[LocalServer]:
    """A server with a token, few places, a short patience and a friend."""
    config = {
        "listen": {"token": "sesame", "origins": ["https://friend.example"]},
        "limits": {"sessions": 2, "handshake_s": 1.0, "message_bytes": 2048},
        "engines": ALONE,
    }
    with LocalServer(config) as server:
        yield server


def test_a_token_is_asked_for_where_it_matters(strict: LocalServer) -> None:
    for path in ("/", "/assets/main.js", "/health", "/openapi.json"):
        assert get(strict, path).status == 200, path
    for path in ("/stats", "/metrics", "/v1/avatars", "/v1/sample.wav", "/models/demo/video.mp4"):
        refused = get(strict, path)
        assert refused.status == 401, path
        assert refused.headers["www-authenticate"] == "Bearer"
    assert get(strict, "/v1/avatars?token=sesame").status == 200
    assert get(strict, "/v1/avatars", Authorization="Bearer sesame").status == 200
    assert get(strict, "/v1/avatars?token=Sesame").status == 401
    connection, head = upgrade(strict)
    connection.close()
    assert head.startswith("http/1.1 401 ")


def test_a_friends_page_may_read(strict: LocalServer) -> None:
    friend = get(strict, "/v1/avatars?token=sesame", Origin="https://friend.example")
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    other = get(strict, "/v1/avatars?token=sesame", Origin="https://evil.example")
    assert "access-control-allow-origin" not in other.headers


def test_full_says_when_to_come_again(strict: LocalServer) -> None:
    with contextlib.ExitStack() as open_:
        for _ in range(2):
            connection, head = upgrade(strict, path="/ws?token=sesame")
            open_.enter_context(connection)
            assert head.startswith("http/1.1 101 ")
        # A connection counts once its protocol has begun.
        end = time.monotonic() + PATIENCE_S
        head = ""
        while not head.startswith("http/1.1 503 ") and time.monotonic() < end:
            connection, head = upgrade(strict, path="/ws?token=sesame")
            connection.close()
        assert head.startswith("http/1.1 503 ")
        assert "\r\nretry-after: " in head


def test_heads_that_do_not_end(strict: LocalServer) -> None:
    with dial(strict) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(600):
                slow.sendall(b"a")
                slow.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if slow.recv(4096) == b"":
                        break
            else:
                pytest.fail("a slow head is waited for without end")
    with dial(strict) as large:
        with contextlib.suppress(ConnectionError):
            large.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000)
        said = b""
        with contextlib.suppress(ConnectionError):
            said = large.recv(4096)
        assert said == b"" or said.startswith(b"HTTP/1.1 4")
    assert get(strict, "/health").status == 200


def test_places_are_free_again_at_once(strict: LocalServer) -> None:
    """Also those of the connections themselves: there are 256 more than of sessions."""
    for _ in range(300):
        connection, head = upgrade(strict, path="/ws?token=sesame")
        with connection:
            if head.startswith("http/1.1 503 "):
                continue  # the one before is on its way out
            connection.sendall(frame(8, struct.pack("!H", 1000)))
            all_of(connection)
    assert get(strict, "/health").status == 200


def test_many_who_come_and_go(strict: LocalServer) -> None:
    def rush() -> None:
        for number in range(40):
            with contextlib.suppress(OSError), dial(strict) as connection:
                if number % 2:
                    linger = struct.pack("ii", 1, 0)  # leave by RST
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

    crowd = [threading.Thread(target=rush) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert get(strict, "/health").status == 200
    assert get(strict, "/stats?token=sesame").json["fronts"][0]["restarts"] == 0


def test_who_does_not_read_does_not_hold_up_the_end() -> None:
    with LocalServer({"engines": ALONE, "drain_seconds": 0.5}) as server:
        connection, head = upgrade(server, "Sec-WebSocket-Protocol: lipsync.v1")
        with connection:
            assert head.startswith("http/1.1 101 ")
            connection.sendall(frame(1, b'{"type":"session.start"}'))
            end = time.monotonic() + PATIENCE_S
            while time.monotonic() < end:  # until frames are left out, since it reads none
                if server.status().fronts[0].load.skipped:
                    break
                time.sleep(0.1)
            assert server.status().fronts[0].load.skipped
            server.terminate()
            assert server.wait(PATIENCE_S) == 0
            assert "child=front-1 how='exit status 0'" in server.log()
