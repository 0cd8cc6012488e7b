# SPDX-License-Identifier: Apache-2.0
"""The same server as its clients see it: asked at its address, as a stranger and with a token."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from lipsync_fast import canonical
from lipsync_fast.errors import ConfigError
from lipsync_fast.production.checks import Item, ok, warning, wrong
from lipsync_fast.version import __version__

ANSWER_S = 10.0
MOST_BYTES = 16 << 20
DAYS = 14
"""A certificate that ends sooner is to be renewed now."""


@dataclass(frozen=True)
class Place:
    """Where a server is asked.

    Attributes:
        path: that comes before each of the server's own.
        token: to be shown; nothing where empty.
        trusted: file of the very certificate that it has, where that is known; else those of
            authorities that this machine trusts, and it must be of that host.
    """

    tls: bool
    host: str
    port: int
    path: str
    token: str
    trusted: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine's own loopback address."""
        return canonical.is_loopback(self.host)


@dataclass(frozen=True)
class Answer:
    """An answer's status and body; or why there is none."""

    status: int
    body: bytes = b""
    problem: str = ""


def place_of(url: str, token: str) -> Place:
    """Where a URL leads.

    Raises:
        ConfigError: it is no address of HTTP.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r}: expected http://HOST:PORT or https://HOST")
    tls = parts.scheme == "https"
    number = port if port is not None else (443 if tls else 80)
    return Place(tls, parts.hostname, number, parts.path.rstrip("/"), token)


def probe(place: Place) -> list[Item]:
    """All that is asked of a server at its address; one that is not there gives one item alone."""
    health = ask(place, "/health/ready")
    items = [reachable(health)]
    if health.problem:
        return items
    items.append(certificate(place))
    paths = "/stats", "/metrics"
    items.append(strangers(place, {path: ask(place, path, stranger=True) for path in paths}))
    items.append(metrics(place, ask(place, "/metrics")))
    items.append(upgrade(ask(place, "/ws", upgrade=True)))
    return items


# ---------------------------------------------------------------- items
def reachable(answer: Answer) -> Item:
    """Whether a balancer would send somebody here."""
    if answer.problem:
        return wrong("health", answer.problem, "does it run, and does the proxy find it?")
    if answer.status != 200:
        advice = "see lipsync-fast status, and the proxy's paths"
        return wrong("health", f"/health/ready answers {answer.status}", advice)
    return ok("health", "/health/ready answers 200")


def certificate(place: Place) -> Item:
    """Whether clients will go on trusting it. (One that they do not trust gives no answer.)"""
    name = "certificate"
    if not place.tls:
        if place.is_here:
            return ok(name, "none is needed on this machine")
        return wrong(
            name, f"{place.host} is asked without TLS", "give the https:// address, or set up TLS"
        )
    ends = _certificate_ends(place)
    if ends is None:
        return warning(name, "its end cannot be seen", "look at it: openssl s_client -connect …")
    days = (ends - time.time()) / 86400
    if days < DAYS:
        return warning(
            name, f"ends in {max(days, 0):.0f} days", "renew it, and have that renewed by itself"
        )
    return ok(name, f"good for {days:.0f} days")


def strangers(place: Place, answers: Mapping[str, Answer]) -> Item:
    """Whether who shows nothing is sent away, by what each path answers."""
    name, told = "strangers", [path for path, answer in answers.items() if answer.status == 200]
    if told and not place.is_here:
        advice = "set listen.token, or keep these paths inside"
        found = f"{' and '.join(told)} tell everybody at {place.host} how the server does"
        return wrong(name, found, advice)
    for path, answer in answers.items():
        if answer.status not in (200, 401, 403):
            said = answer.problem or f"{path} answers {answer.status}"
            return warning(name, said, "expected 401: is it this server that answers?")
    if told:
        return ok(name, f"{' and '.join(told)} answer programs of this machine")
    return ok(name, f"{' and '.join(answers)} are not for who shows no token")


def metrics(place: Place, answer: Answer) -> Item:
    """Whether Prometheus can read it."""
    name = "metrics"
    if answer.status == 200:
        try:
            text = answer.body.decode()
            names = {family.name for family in text_string_to_metric_families(text)}
        except ValueError as error:
            return wrong(
                name, f"/metrics cannot be read: {error}", "is it this server that answers?"
            )
        ours = sum(each.startswith("lipsync_fast_") for each in names)
        if not ours:
            return wrong(name, "/metrics is not this server's", "pass the path on to it")
        return ok(name, f"/metrics tells {ours} figures")
    if answer.status == 401 and not place.token:
        advice = "set LIPSYNC_FAST_TOKEN to check what a scraper with the token gets"
        return warning(name, "/metrics asks for a token", advice)
    said = answer.problem or f"/metrics answers {answer.status}"
    return wrong(name, said, "a scraper sees nothing: see the token, and the proxy's paths")


def upgrade(answer: Answer) -> Item:
    """Whether WebSockets come through."""
    name = "WebSocket"
    if answer.status == 101:
        return ok(name, "/ws is upgraded")
    if answer.status == 401:
        return ok(name, "/ws asks for a token") if not answer.problem else _not_upgraded(answer)
    return _not_upgraded(answer)


def _not_upgraded(answer: Answer) -> Item:
    advice = "the proxy must pass Upgrade, Connection, Host and Origin on (docs/operations.md)"
    return wrong("WebSocket", answer.problem or f"/ws answers {answer.status}", advice)


# ---------------------------------------------------------------- asking
def ask(place: Place, path: str, *, stranger: bool = False, upgrade: bool = False) -> Answer:
    """GET a path; what went wrong is in the answer."""
    headers = {"User-Agent": f"lipsync-fast-doctor/{__version__}"}
    if place.token and not stranger:
        headers["Authorization"] = f"Bearer {place.token}"
    if upgrade:
        headers |= {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": "lipsync.v1",
        }
    connection: http.client.HTTPConnection | None = None
    try:
        connection = _connection(place)
        connection.request("GET", place.path + path, headers=headers)
        response = connection.getresponse()
        body = b"" if response.status == 101 else response.read(MOST_BYTES)
        return Answer(response.status, body)
    except ssl.SSLCertVerificationError as error:
        return Answer(0, problem=f"its certificate is not trusted: {error.verify_message}")
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        return Answer(0, problem=f"{place.host}:{place.port} does not answer: {reason}")
    finally:
        if connection is not None:
            connection.close()


def _context(place: Place) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=place.trusted or None)
    if place.trusted:
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _connection(place: Place) -> http.client.HTTPConnection:
    if not place.tls:
        return http.client.HTTPConnection(place.host, place.port, timeout=ANSWER_S)
    context = _context(place)
    return http.client.HTTPSConnection(place.host, place.port, timeout=ANSWER_S, context=context)


def _certificate_ends(place: Place) -> float | None:
    """When the certificate ends, in seconds since 1970."""
    try:
        with (
            socket.create_connection((place.host, place.port), ANSWER_S) as plain,
            _context(place).wrap_socket(plain, server_hostname=place.host) as secure,
        ):
            found = secure.getpeercert() or {}
        return float(ssl.cert_time_to_seconds(str(found["notAfter"])))
    except (OSError, KeyError, ValueError):
        return None
