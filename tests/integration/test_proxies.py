# SPDX-License-Identifier: Apache-2.0
"""The proxies of the documents, each with the documents' configuration before a real server."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import Authority
from documents import blocks
from programs import installed
from talking import ALONE, SLOW_MACHINE, speech
from websockets.sync.client import connect

from lipsync_fast.client.local import LocalServer
from lipsync_fast_client.protocol import (
    MediaType,
    SessionStart,
    UtteranceEnd,
    UtteranceEnded,
    decode_server,
    encode,
    unpack_media,
)

PATIENCE_S = 120.0
NAME = "app.example.org"
"""What the configurations call the service."""
LISTEN = {"origins": [f"https://{NAME}"], "proxies": ["127.0.0.1"]}
UPSTREAM = "127.0.0.1:8086"


class Place:
    """Where a proxy runs: its files, its port, and the server behind it.

    Attributes:
        authority: has signed the public certificate, ``NAME``.pem, .key and .both in ``folder``.
    """

    def __init__(self, folder: Path, upstream: str) -> None:
        self.folder, self.upstream = folder, upstream
        self.authority = Authority(folder)
        self.authority.issue(NAME)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])

    def written(self, name: str, text: str, *changes: tuple[str, str]) -> str:
        """A configuration with its files and ports here; all that is to be changed is there."""
        for old, new in [("/etc/ssl/", f"{self.folder}/"), *changes]:
            assert old in text or old == "/etc/ssl/", old
            text = text.replace(old, new)
        (self.folder / name).write_text(text)
        return str(self.folder / name)


def shown(kind: str, mark: str) -> str:
    (block,) = [block for block in blocks(kind) if mark in block.text]
    return block.text


def nginx(place: Place) -> list[str]:
    """The command that runs nginx with the documents' configuration, and nothing else."""
    port = f"listen 127.0.0.1:{place.port} ssl"
    kinds = "client_body", "proxy", "fastcgi", "uwsgi", "scgi"
    kept = "\n".join(f"{kind}_temp_path {place.folder}/{kind};" for kind in kinds)
    text = (
        f"daemon off;\npid {place.folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{kept}\n{shown('nginx', NAME)}\n}}\n"
    )
    changes = ("listen 443 ssl", port), (UPSTREAM, place.upstream)
    file = place.written("nginx.conf", text, *changes)
    return ["nginx", "-e", "stderr", "-p", str(place.folder), "-c", file]


def haproxy(place: Place) -> list[str]:
    """The same for HAProxy."""
    text = shown("haproxy", "server local")
    return _haproxy(place, text, (UPSTREAM, place.upstream))


def haproxy_far(place: Place) -> list[str]:
    """HAProxy before a server on another machine, with which it speaks TLS."""
    near, far = shown("haproxy", "server local"), shown("haproxy", "server far")
    text = near[: near.index("\nbackend ") + 1] + far
    place.authority.issue("proxy").with_suffix(".both").rename(place.folder / "shown.pem")
    return _haproxy(
        place,
        text,
        ("192.0.2.7:8086", place.upstream),
        ("/etc/haproxy/authority.pem", str(place.authority.file)),
        ("/etc/haproxy/proxy.pem", str(place.folder / "shown.pem")),
    )


def _haproxy(place: Place, text: str, *changes: tuple[str, str]) -> list[str]:
    public = f"/etc/haproxy/{NAME}.pem", str(place.folder / f"{NAME}.both")
    changes = ("bind :443", f"bind 127.0.0.1:{place.port}"), public, *changes
    return ["haproxy", "-db", "-f", place.written("haproxy.cfg", text, *changes)]


def caddy(place: Place) -> list[str]:
    """The same for Caddy, without its own ports and folders."""
    own = f"{{\n admin off\n auto_https disable_redirects\n}}\nhttps://{NAME}"
    site = shown("caddyfile", NAME).replace(f"{NAME} {{", f"{NAME}:{place.port} {{", 1)
    at = site.index(NAME, site.index("\n"))
    text = own + site[at + len(NAME) :].replace("{", "{\n bind 127.0.0.1", 1)
    file = place.written("Caddyfile", text, (UPSTREAM, place.upstream))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", file]


def envoy(place: Place) -> list[str]:
    """The same for Envoy."""
    host, port = place.upstream.split(":")
    file = place.written(
        "envoy.yaml",
        shown("yaml", "/etc/envoy/envoy.yaml"),
        ('"::", port_value: 443, ipv4_compat: true', f"127.0.0.1, port_value: {place.port}"),
        ("address: 127.0.0.1, port_value: 8086", f"address: {host}, port_value: {port}"),
    )
    return ["envoy", "-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]


@pytest.fixture(scope="module")
def behind() -> Iterator[LocalServer]:
    """A server as the documents have it behind a proxy."""
    text = shown("toml", 'proxies = ["127.0.0.1"]')
    assert f'origins = ["https://{NAME}"]' in text
    with LocalServer({"listen": LISTEN, "live": SLOW_MACHINE, "engines": ALONE}) as running:
        yield running


@pytest.mark.parametrize("command", [nginx, haproxy, caddy, envoy], ids=lambda c: c.__name__)
def test_proxies_pass_on_what_they_should(
    command: Callable[[Place], list[str]], behind: LocalServer, tmp_path: Path
) -> None:
    program = installed(command.__name__)
    place = Place(tmp_path, behind.http_url.removeprefix("http://"))
    with running(program, command(place), place):
        check_proxy(place)


def test_a_proxy_that_speaks_tls_with_the_server(tmp_path: Path) -> None:
    """Each shows the other its certificate; who has none of theirs does not get in."""
    program = installed("haproxy")
    place = Place(tmp_path, "")
    own = place.authority.issue("server")
    text = shown("toml", "tls_client_ca = ")
    for key in ("tls_cert", "tls_key", "tls_client_ca", "origins", "proxies"):
        assert f"\n{key} = " in text
    files = {"tls_cert": str(own), "tls_key": str(own.with_suffix(".key"))}
    files["tls_client_ca"] = str(place.authority.file)
    config = {"listen": LISTEN | files, "live": SLOW_MACHINE, "engines": ALONE}
    with LocalServer(config) as server:
        place.upstream = server.http_url.removeprefix("https://")
        with running(program, haproxy_far(place), place):
            check_proxy(place)
        host, _, port = place.upstream.partition(":")
        with (
            socket.create_connection((host, int(port)), PATIENCE_S) as plain,
            place.authority.trusted().wrap_socket(plain, server_hostname=NAME) as stranger,
            pytest.raises(ssl.SSLError, match="certificate required"),
        ):
            stranger.recv(1)


@contextlib.contextmanager
def running(program: str, command: list[str], place: Place) -> Iterator[None]:
    """A proxy that listens, and is ended whatever happens."""
    homes = {name: str(place.folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (place.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *command[1:]], stdout=log, stderr=log, env={**os.environ, **homes}
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            assert process.poll() is None, "the proxy has ended"
            with contextlib.suppress(OSError), dial(place):
                break
            assert time.monotonic() < end, "the proxy does not listen"
            time.sleep(0.05)
        yield
    except BaseException:
        print((place.folder / "log").read_text())
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def dial(place: Place) -> ssl.SSLSocket:
    """A connection to the proxy, whose certificate is looked at."""
    plain = socket.create_connection(("127.0.0.1", place.port), PATIENCE_S)
    try:
        return place.authority.trusted().wrap_socket(plain, server_hostname=NAME)
    except BaseException:
        plain.close()
        raise


def check_proxy(place: Place) -> None:
    def ask(method: str, path: str, **headers: str) -> tuple[int, bytes]:
        client = http.client.HTTPConnection(NAME, place.port)
        client.sock = dial(place)
        with contextlib.closing(client):
            client.request(method, path, headers={"Host": NAME, **headers})
            answer = client.getresponse()
            return answer.status, answer.read()

    end = time.monotonic() + PATIENCE_S
    while ask("GET", "/health")[0] == 503 and time.monotonic() < end:
        time.sleep(0.1)  # HAProxy asks first whether the server is well
    status, page = ask("GET", "/")
    assert (status, b"<html" in page) == (200, True)
    assert ask("GET", "/v1/avatars")[0] == 200
    status, words = ask("DELETE", "/v1/avatars/demo")
    assert (status, b"admin_token" in words) == (403, True)
    status, words = ask("GET", "/v1/avatars", Host="evil.example")
    assert status in (403, 404, 421) or not words

    frames = 0
    with connect(
        f"wss://{NAME}/ws",
        sock=socket.create_connection(("127.0.0.1", place.port), PATIENCE_S),
        ssl=place.authority.trusted(),
        server_hostname=NAME,
        origin=f"https://{NAME}",  # type: ignore[arg-type]
        subprotocols=["lipsync.v1"],  # type: ignore[list-item]
        proxy=None,
    ) as session:
        session.send(encode(SessionStart(pace="burst")))
        session.send(speech(0.6).tobytes())
        session.send(encode(UtteranceEnd()))
        while True:
            message = session.recv(PATIENCE_S)
            if isinstance(message, bytes):
                frames += unpack_media(message)[0].type == MediaType.FRAME
            elif isinstance(decode_server(message), UtteranceEnded):
                break
    assert frames == 15
