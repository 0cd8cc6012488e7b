# SPDX-License-Identifier: Apache-2.0
"""TLS on a connection: what clients see of it, well meant or not."""

from __future__ import annotations

import os
import socket
import ssl
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from certificates import Authority
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipsync_fast.certificates import Certificate
from lipsync_fast.config import Listen
from lipsync_fast.errors import ConfigError
from lipsync_fast.frontend.access.door import Door
from lipsync_fast.frontend.access.secure import PLAIN_HTTP, SecureStream, Security
from lipsync_fast.tls import read_certificate

PATIENCE_S = 60.0
Handle = Callable[[SecureStream], Awaitable[Any]]
NEWEST = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return _read(authority.issue("server"))


def _read(file: Path, client_ca: Path | str = "") -> Certificate:
    key = str(file.with_suffix(".key"))
    found = read_certificate(Listen(tls_cert=str(file), tls_key=key, tls_client_ca=str(client_ca)))
    assert found is not None
    return found


def serve(security: Security, handle: Handle, client: Callable[[socket.socket], Any]) -> Any:
    """One connection: what ``handle`` does with it, while ``client`` runs in a thread.

    Returns:
        What the client has found.
    """

    async def run() -> Any:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        place = listener.socket.getsockname()
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery, listener:
                nursery.start_soon(_handle_one, security, listener, handle)

                def talk() -> Any:
                    with socket.create_connection(place, PATIENCE_S) as connection:
                        return client(connection)

                return await trio.to_thread.run_sync(talk)

    return trio.run(run)


async def _handle_one(security: Security, listener: trio.SocketListener, handle: Handle) -> None:
    async with await listener.accept() as stream:
        secure = security.over(stream)
        assert isinstance(secure, SecureStream)
        async with secure:
            await handle(secure)


async def give_back(stream: SecureStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


def all_of(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(1 << 16):
        found += piece
    return found


def of(certificate: Certificate, refused: list[str] | None = None) -> Security:
    return Security(certificate, lambda: None if refused is None else refused.append("one"))


@pytest.mark.parametrize("version", NEWEST, ids=lambda version: version.name)
def test_both_directions_and_an_end_that_is_told(
    authority: Authority, certificate: Certificate, version: ssl.TLSVersion
) -> None:
    """No end is one that somebody in between could have made."""
    context = authority.trusted()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    data = os.urandom(1 << 20)

    async def answer(stream: SecureStream) -> None:
        heard = b""
        while len(heard) < len(data):
            heard += await stream.receive_some(5000)
        await stream.send_all(heard[::-1])

    def ask(connection: socket.socket) -> tuple[bytes, object]:
        with context.wrap_socket(
            connection, server_hostname="localhost", suppress_ragged_eofs=False
        ) as inside:
            inside.sendall(data)
            return all_of(inside), inside.selected_alpn_protocol()

    assert serve(of(certificate), answer, ask) == (data[::-1], "http/1.1")


def test_who_has_said_that_it_sends_no_more_hears_the_other_out(
    authority: Authority, certificate: Certificate
) -> None:
    """Else the kernel would break the connection under what was said last."""
    heard = []

    async def answer(stream: SecureStream) -> None:
        heard.append(await stream.receive_some())
        await stream.send_all(b"enough")
        await stream.send_eof()
        heard.append(await stream.receive_some())

    def ask(connection: socket.socket) -> bytes:
        with authority.trusted().wrap_socket(
            connection, server_hostname="localhost", suppress_ragged_eofs=False
        ) as inside:
            inside.sendall(b"a")
            found = all_of(inside)
            inside.sendall(b"more" * 100_000)
            return found

    assert serve(of(certificate), answer, ask) == b"enough"
    assert heard == [b"a", b""]


WHY = {
    "none": "peer did not return a certificate",
    "a stranger's": "certificate verify failed: unable to get local issuer certificate",
}


@pytest.mark.parametrize("shown", ["none", "a stranger's", "ours"])
@pytest.mark.parametrize("version", NEWEST, ids=lambda version: version.name)
def test_clients_that_must_show_a_certificate(
    authority: Authority, tmp_path: Path, shown: str, version: ssl.TLSVersion
) -> None:
    refused: list[str] = []
    security = of(_read(authority.issue("asks"), authority.file), refused)
    own = {
        "none": None,
        "a stranger's": Authority(tmp_path, "stranger").issue("guest"),
        "ours": authority.issue("guest"),
    }[shown]
    context = authority.trusted(own)
    context.minimum_version = context.maximum_version = version

    async def answer(stream: SecureStream) -> None:
        if shown == "ours":
            await give_back(stream)
            return
        with pytest.raises(trio.BrokenResourceError, match=WHY[shown]):
            await give_back(stream)

    def ask(connection: socket.socket) -> object:
        try:
            with context.wrap_socket(connection, server_hostname="localhost") as inside:
                inside.sendall(b"hello")
                return inside.recv(99)
        except ssl.SSLError as error:
            return error.reason

    found = serve(security, answer, ask)
    assert len(refused) == (shown != "ours")
    if shown == "ours":
        assert found == b"hello"
    else:
        assert found in {
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
            "TLSV1_ALERT_UNKNOWN_CA",
        }, "told in TLS's own words"


def test_an_old_version_is_told_so(authority: Authority, certificate: Certificate) -> None:
    refused: list[str] = []
    context = authority.trusted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    async def answer(stream: SecureStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await give_back(stream)

    def ask(connection: socket.socket) -> object:
        with pytest.raises(ssl.SSLError) as caught:
            context.wrap_socket(connection, server_hostname="localhost")
        return caught.value.reason

    assert serve(of(certificate, refused), answer, ask) == "TLSV1_ALERT_PROTOCOL_VERSION"
    assert len(refused) == 1


def test_nobody_renegotiates(authority: Authority, certificate: Certificate) -> None:
    openssl = pytest.importorskip("OpenSSL.SSL", reason="needs pyOpenSSL (the extra webrtc)")

    def ask(connection: socket.socket) -> bytes:
        context = openssl.Context(openssl.TLS_CLIENT_METHOD)
        context.set_max_proto_version(openssl.TLS1_2_VERSION)
        connection.settimeout(None)  # pyOpenSSL's would be without waiting
        inside = openssl.Connection(context, connection)
        inside.set_connect_state()
        inside.do_handshake()
        inside.sendall(b"before")
        assert inside.recv(99) == b"before"
        assert inside.renegotiate()
        with pytest.raises(openssl.Error, match="no renegotiation"):
            inside.do_handshake()
        return b"refused"

    async def answer(stream: SecureStream) -> None:
        try:
            await give_back(stream)
        except trio.BrokenResourceError:
            return

    assert serve(of(certificate), answer, ask) == b"refused"


@pytest.mark.parametrize("size", [0, 300_000])
def test_http_without_tls_is_answered(certificate: Certificate, size: int) -> None:
    refused: list[str] = []
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)

    async def answer(stream: SecureStream) -> None:
        with pytest.raises(trio.BrokenResourceError, match="http request"):
            await give_back(stream)

    def ask(connection: socket.socket) -> bytes:
        connection.sendall(request)
        return all_of(connection)

    assert serve(of(certificate, refused), answer, ask) == PLAIN_HTTP
    assert len(refused) == 1


_HELLO = bytes.fromhex("160301020001 0001fc0303")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400), st.booleans())
def test_anything_ends(certificate: Certificate, data: bytes, like_a_hello: bool) -> None:
    """Whatever comes, and wherever it breaks off: no exception but the one for broken ones."""

    async def answer(stream: SecureStream) -> None:
        try:
            await give_back(stream)
        except trio.BrokenResourceError:
            return

    def ask(connection: socket.socket) -> None:
        connection.sendall(_HELLO * like_a_hello + data)
        connection.shutdown(socket.SHUT_WR)
        try:
            all_of(connection)
        except ConnectionError:
            return

    serve(of(certificate), answer, ask)


def test_nothing_is_said_before_the_handshake(certificate: Certificate) -> None:
    async def answer(stream: SecureStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"hello")

    assert serve(of(certificate), answer, all_of) == b""


def test_a_new_certificate_is_for_those_that_come(
    authority: Authority, certificate: Certificate
) -> None:
    security, other = of(certificate), _read(authority.issue("renewed"))

    def subject(inside: ssl.SSLSocket) -> str:
        return str(dict(pair for (pair,) in inside.getpeercert()["subject"])["commonName"])

    def ask(connection: socket.socket) -> str:
        with authority.trusted().wrap_socket(connection, server_hostname="localhost") as inside:
            security.renew(other)
            inside.sendall(b"still here")
            assert inside.recv(99) == b"still here"
            return subject(inside)

    assert serve(security, give_back, ask) == "server"
    assert serve(security, give_back, ask) == "renewed"


def test_who_is_turned_away_is_told_by_an_alert(authority: Authority) -> None:
    """Not by words in HTTP, which would look like a server of another kind."""

    async def run() -> object:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        place = listener.socket.getsockname()
        door = Door(listener, lambda: None, admits=lambda stream: False, secure=True)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(door.accept)

                def ask() -> object:
                    with (
                        socket.create_connection(place, PATIENCE_S) as connection,
                        pytest.raises(ssl.SSLError) as caught,
                    ):
                        authority.trusted().wrap_socket(connection, server_hostname="localhost")
                    return caught.value.reason

                found = await trio.to_thread.run_sync(ask)
                nursery.cancel_scope.cancel()
            await door.aclose()
        return found

    assert trio.run(run) == "TLSV1_ALERT_INTERNAL_ERROR"


# ---------------------------------------------------------------- files
def test_a_file_may_hold_both(authority: Authority) -> None:
    both = authority.issue("both").with_suffix(".both")
    assert read_certificate(Listen(tls_cert=str(both))) is not None
    assert read_certificate(Listen()) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tls_cert": "none.pem"}, "listen.tls_cert: {}none.pem: No such file or directory"),
        ({"tls_cert": "."}, "listen.tls_cert: {}.: Is a directory"),
        ({"tls_cert": "a.key"}, "listen.tls_cert: {}a.key: holds no certificate (PEM)"),
        ({"tls_cert": "broken.pem"}, "listen.tls_cert: {}broken.pem: cannot be read ("),
        ({"tls_cert": "long.pem"}, "listen.tls_cert: {}long.pem: longer than 128 KiB; no cert"),
        ({"tls_key": ""}, "listen.tls_key: expected the file of the key of {}a.pem"),
        ({"tls_key": "b.key"}, "listen.tls_cert: {}a.pem: listen.tls_key is not the key of this"),
        ({"tls_key": "locked.key"}, "listen.tls_key: {}locked.key: is encrypted; expected"),
        ({"tls_client_ca": "a.key"}, "listen.tls_client_ca: {}a.key: holds no certificate"),
        ({"tls_client_ca": "broken.pem"}, "listen.tls_client_ca: {}broken.pem: cannot be read ("),
        ({"tls_client_ca": "word.pem"}, "listen.tls_client_ca: {}word.pem: cannot be read (not P"),
    ],
    ids=str,
)
def test_files_that_are_no_good_are_named(
    authority: Authority, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    ours = Authority(tmp_path)
    file = ours.issue("a")
    ours.issue("b")
    ours.issue("locked", password=b"secret")
    content = file.read_bytes()
    (tmp_path / "broken.pem").write_bytes(content[:200] + b"\n-----END CERTIFICATE-----\n")
    (tmp_path / "word.pem").write_bytes(b"\xff" + content)
    (tmp_path / "long.pem").write_bytes(content * 1000)
    names = {"tls_cert": "a.pem", "tls_key": "a.key", "tls_client_ca": ""} | change
    listen = Listen(**{key: f"{tmp_path}/{name}" if name else "" for key, name in names.items()})
    with pytest.raises(ConfigError) as caught:
        read_certificate(listen)
    words = str(caught.value)
    assert words.startswith(message.format(f"{tmp_path}/"))
    assert "\n" not in words
