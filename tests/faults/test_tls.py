# SPDX-License-Identifier: Apache-2.0
"""A server that speaks TLS: its limits hold there, too, and its certificate can be replaced."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest
import trio
from certificates import Authority
from raw_websocket import all_of
from serving import until
from talking import ALONE
from websockets.trio.client import connect

import lipsync_fast
from lipsync_fast.client import VideoFrame
from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import SessionError

PATIENCE_S = 60.0
SHARE = 4 + 64
PORTS = "stream", "http"
_IS_THERE = find_spec("grpc") is not None and find_spec("aiortc") is not None
GATEWAY = {"grpc_ports": [0], "webrtc_ports": [0]} if _IS_THERE else {}
gateway = pytest.mark.skipif(not _IS_THERE, reason="the extras grpc and webrtc are not installed")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[LocalServer]:
    """One that lets each address have few connections, and asks for certificates."""
    own = authority.issue("server")
    listen = {"tls_cert": str(own), "tls_key": str(own.with_suffix(".key"))} | GATEWAY
    config = {
        "listen": listen | {"tls_client_ca": str(authority.file)},
        "limits": {"sessions": 50, "sessions_per_address": 4, "handshake_s": 300.0},
        "fronts": 2,
        "engines": ALONE,
    }
    with LocalServer(config) as server:
        yield server


@pytest.fixture(scope="module")
def trusted(authority: Authority) -> ssl.SSLContext:
    return authority.trusted(authority.issue("guest"))


@pytest.fixture(autouse=True)
def nothing_has_failed(server: LocalServer) -> Iterator[None]:
    before = [front.pid for front in server.status().fronts]
    yield
    assert [front.pid for front in server.status().fronts] == before
    assert "Traceback" not in server.log()


def of(server: LocalServer, kind: str) -> str:
    return server.url if kind == "stream" else server.http_url


def dial(url: str, data: bytes = b"") -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), PATIENCE_S)
    connection.sendall(data)
    return connection


def ask(server: LocalServer, path: str, context: ssl.SSLContext) -> tuple[int, bytes]:
    place = urlsplit(server.http_url).netloc
    connection = http.client.HTTPSConnection(place, timeout=PATIENCE_S, context=context)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def refused(server: LocalServer, reason: str) -> int:
    return sum(front.load.refused.get(reason, 0) for front in server.status().fronts)


@pytest.mark.parametrize("kind", PORTS)
def test_a_session(server: LocalServer, trusted: ssl.SSLContext, kind: str) -> None:
    """At rest, and to its end: pictures come, and the end is answered."""
    url = server.url if kind == "stream" else server.http_url.replace("http", "ws", 1) + "/ws"

    async def talk() -> list[str]:
        told: list[str] = []
        pictures = 0
        async with connect(url, ssl=trusted, subprotocols=["lipsync.v1"]) as socket:
            await socket.send('{"type": "session.start"}')
            while pictures < 5:
                message = await socket.recv()
                if isinstance(message, str):
                    told.append(json.loads(message)["type"])
                pictures += isinstance(message, bytes)
            await socket.send('{"type": "session.stop"}')
            async for _ in socket:
                pass
            assert socket.close_code == 1000
        return told

    async def run() -> list[str]:
        with trio.fail_after(PATIENCE_S):
            return await talk()

    assert "session.started" in trio.run(run)


@pytest.mark.parametrize("library", ["trio", "asyncio"])
def test_the_client(
    server: LocalServer, authority: Authority, trusted: ssl.SSLContext, library: str
) -> None:
    """With a certificate it has a session; without, or without trust, an error that says why."""

    async def talk(context: ssl.SSLContext | None) -> int:
        seen = 0
        async with lipsync_fast.connect(server.url, ssl=context) as session:
            async for event in session:
                seen += isinstance(event, VideoFrame)
                if seen == 3:
                    break
        return seen

    def outcome(context: ssl.SSLContext | None) -> object:
        try:
            if library == "trio":
                return trio.run(talk, context)
            return asyncio.run(talk(context))
        except SessionError as error:
            return error.code, str(error)

    assert outcome(trusted) == 3
    code, words = outcome(None)
    assert code == "connection"
    assert "certificate verify failed" in words
    code, _ = outcome(authority.trusted())
    assert code == "connection"


@pytest.mark.parametrize("kind", PORTS)
def test_who_speaks_http_is_told(server: LocalServer, kind: str) -> None:
    with dial(of(server, kind), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"this port speaks TLS: ask https:// or wss://\n")


def test_a_client_without_a_certificate_is_counted_and_logged_once(
    server: LocalServer, authority: Authority
) -> None:
    before = refused(server, "tls")
    for _ in range(10):
        with pytest.raises(ssl.SSLError, match="certificate required"):
            ask(server, "/health", authority.trusted())
    until(lambda: refused(server, "tls") >= before + 10, "for the counts")
    lines = [line for line in server.log().splitlines() if "no TLS with a client" in line]
    assert 1 <= len(lines) <= 2, "a line of each front a minute"


@pytest.mark.parametrize("kind", PORTS)
def test_who_does_not_finish_the_handshake_waits(
    server: LocalServer, trusted: ssl.SSLContext, kind: str
) -> None:
    """They lose their connections to those who do, though they might have 300 s."""
    hello = b"\x16\x03\x01\x02\x00\x01"  # and no more
    with contextlib.ExitStack() as held:
        waiting = [
            held.enter_context(dial(of(server, kind), hello)) for _ in range(2 * (SHARE + 16) + 8)
        ]
        until(lambda: any(map(_has_ended, waiting)), "for one that loses its place")
        if kind == "http":
            assert ask(server, "/health", trusted)[0] == 200
        else:
            with (
                dial(of(server, kind)) as raw,
                trusted.wrap_socket(raw, server_hostname="localhost") as connection,
            ):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(99).startswith(b"HTTP/1.1 426 ")


def _has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@gateway
def test_the_gateways_ports_speak_it(server: LocalServer, authority: Authority) -> None:
    """gRPC and WebRTC's signalling, old certificate and new: to those who show one of theirs."""
    import grpc

    own = authority.issue("guest")
    (ports,) = [each.ports for each in server.status().gateways]
    place = f"localhost:{ports['grpc'][0]}"

    def listed(*shown: bytes) -> bytes:
        trust = grpc.ssl_channel_credentials(authority.file.read_bytes(), *shown)
        with grpc.secure_channel(place, trust) as channel:
            ask = channel.unary_unary("/grpc.health.v1.Health/Check")
            return bytes(ask(b"", timeout=PATIENCE_S))

    def served() -> str:
        """The serial number of what WebRTC's port shows."""
        place = "localhost", ports["webrtc"][0]
        with (
            socket.create_connection(place, PATIENCE_S) as raw,
            authority.trusted(own).wrap_socket(raw, server_hostname="localhost") as inside,
        ):
            inside.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"WebRTC of lipsync-fast" in all_of(inside)
            return str(inside.getpeercert()["serialNumber"])

    guest = own.with_suffix(".key").read_bytes(), own.read_bytes()
    assert listed(*guest) == b"\x08\x01", "it serves"
    with pytest.raises(grpc.RpcError) as caught:
        listed()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    first = served()
    authority.issue("server")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: served() != first, "for the new certificate")
    shown = ssl.get_server_certificate(("localhost", ports["grpc"][0]), timeout=PATIENCE_S)
    assert shown == (authority.file.parent / "server.pem").read_text()


def test_a_new_certificate_in_every_front_and_a_bad_one_in_none(
    server: LocalServer, authority: Authority, trusted: ssl.SSLContext
) -> None:
    def serials() -> set[str]:
        """Of many connections, which the kernel shares out among fronts."""
        found = set()
        for _ in range(24):
            with (
                dial(server.http_url) as raw,
                trusted.wrap_socket(raw, server_hostname="localhost") as inside,
            ):
                found.add(str(inside.getpeercert()["serialNumber"]))
        return found

    def said(words: str) -> int:
        return server.log().count(words)

    first = serials()
    assert len(first) == 1
    with dial(server.http_url) as raw, trusted.wrap_socket(raw, server_hostname="localhost") as old:
        own = authority.issue("server")
        before = said("the certificate was read again")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: said("the certificate was read again") > before, "for the new certificate")
        second = until(lambda: {*serials()} - first and serials(), "for all fronts")
        until(lambda: serials().isdisjoint(first), "for all fronts")
        own.write_text("nothing\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: said("the certificate is kept as it was"), "for the refusal")
        assert "holds no certificate (PEM)" in server.log()
        assert serials() == second - first
        old.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert old.recv(99).startswith(b"HTTP/1.1 200 ")


def test_no_time_for_the_handshake(authority: Authority) -> None:
    """And a front that is replaced while the files are no good has the certificate that was."""
    both = authority.issue("alone").with_suffix(".both")
    config = {
        "listen": {"tls_cert": str(both)} | GATEWAY,
        "limits": {"handshake_s": 0.5},
        "engines": ALONE,
    }
    with LocalServer(config) as hasty:
        (front,) = hasty.status().fronts
        urls = [hasty.url, hasty.http_url]
        for gateway in hasty.status().gateways:
            urls += [f"//127.0.0.1:{port}" for ports in gateway.ports.values() for port in ports]
        assert len(urls) == (4 if _IS_THERE else 2)
        for url in urls:
            for data in (b"", b"\x16\x03\x01"):
                with dial(url, data) as connection:
                    assert all_of(connection) == b""
        both.write_text("nothing\n")
        os.kill(front.pid, signal.SIGKILL)
        until(lambda: _has_another_front(hasty, front.pid), "for another front")
        assert ask(hasty, "/health", authority.trusted())[0] == 200


def _has_another_front(server: LocalServer, pid: int) -> bool:
    return any(f.state == "ready" and f.pid != pid for f in server.status().fronts)
