# SPDX-License-Identifier: Apache-2.0
"""The one form of what is compared as text: origins, hosts, tokens, names of avatars.

A setting that could never match what browsers and clients send is refused, not kept in vain.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from lipsync_fast_client.hosts import is_loopback as is_loopback

ANY, NULL = "*", "null"
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")
_HOST_AND_PORT = re.compile(r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_ICE_SERVER = re.compile(
    r"stun:[A-Za-z0-9._-]+(:[0-9]{1,5})?"
    r"|turns?:[A-Za-z0-9._-]+(:[0-9]{1,5})?([?]transport=(udp|tcp))?"
)
_NUMBERS = re.compile(r"[0-9a-fx.]*[0-9][0-9a-fx.]*", re.IGNORECASE)


def origin(text: str) -> str:
    """An Origin as browsers write it: in lower case, without a default port or a slash at its end.

    Raises:
        ValueError: says why no browser sends that.
    """
    text = text.strip()
    if text in (ANY, NULL):
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is no origin") from None
    if not parts.scheme or not parts.hostname:
        raise ValueError("is no origin: one is written https://app.example.org")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("has more than an origin has: scheme, host and port, without a path")
    name = _host_of(parts)
    if port is not None and port != _PORTS.get(parts.scheme):
        name += f":{port}"
    return f"{parts.scheme}://{name}"


def _host_of(parts: SplitResult) -> str:
    name = parts.hostname or ""
    if ":" in name:
        return f"[{ipaddress.IPv6Address(name).compressed}]"
    if "*" in name:
        raise ValueError(f"is matched as it stands, '*' within it too; {ANY!r} alone allows all")
    if not name.isascii():
        raise ValueError("is written otherwise by browsers: with xn--… for letters beyond ASCII")
    if not _HOST.fullmatch(name):
        raise ValueError("has no host as a browser writes it")
    return name


def same_place(page: str, host: str) -> bool:
    """Whether an Origin is the server's own, by the Host that it was asked under."""
    try:
        own, asked = urlsplit(page), urlsplit(f"//{host}")
        usual = _PORTS.get(own.scheme)
        return bool(own.hostname) and (own.hostname, own.port or usual) == (
            asked.hostname,
            asked.port or usual,
        )
    except ValueError:
        return False


def host(text: str) -> str:
    """An address or name to listen on: addresses in their shortest form, without brackets.

    Raises:
        ValueError: it can be neither.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return ipaddress.ip_address(text).compressed
    except ValueError:
        pass
    if _NUMBERS.fullmatch(text):  # 127.1, or 0, as the system reads it
        try:
            return socket.inet_ntoa(socket.inet_aton(text))
        except OSError:
            pass
    if text == "." or "/" in text or any(c.isspace() for c in text):
        raise ValueError("is neither an address nor a name of a host")
    return text.lower().removesuffix(".")


@functools.cache
def is_bound_here(name: str) -> bool:
    """Whether a server that listens on a host is reached from this machine alone.

    A name may stand for a loopback address, such as the machine's own often does. It is looked up
    once: what a server listens on does not change.
    """
    if is_loopback(name):
        return True
    try:
        return is_loopback(listening_address(name)[1])
    except (OSError, UnicodeError):
        return False


def listening_address(host: str) -> tuple[socket.AddressFamily, str]:
    """Family and address of a host to listen on; IPv4 where it has both.

    Raises:
        OSError, UnicodeError: it has none.
    """
    addresses = socket.getaddrinfo(
        host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    addresses.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = addresses[0]
    return family, str(address[0])


def peer(address: str) -> str:
    """A client's address: one of IPv4 that came to a socket of both kinds as what it is."""
    return address.removeprefix("::ffff:") if "." in address else address


def address(text: str) -> str:
    """An IP address in its shortest form.

    Raises:
        ValueError: it is none.
    """
    try:
        ip = ipaddress.ip_address(text.strip())
    except ValueError:
        raise ValueError("is no IP address, such as 127.0.0.1") from None
    return peer(ip.compressed)


def addresses(text: str) -> str:
    """An IP address, or a network of them, in its shortest form.

    Raises:
        ValueError: it is neither.
    """
    if "/" not in text:
        return address(text)
    try:
        return ipaddress.ip_network(text.strip()).compressed
    except ValueError:
        raise ValueError("is no network of IP addresses, such as 10.0.0.0/8") from None


def is_among(address: str, places: Collection[str]) -> bool:
    """Whether an address is one of several, or in one of several networks (``addresses``)."""
    if address in places:
        return True
    networks = _networks(tuple(places))
    if not networks:
        return False
    try:
        ip = ipaddress.ip_address(peer(address).partition("%")[0])
    except ValueError:
        return False
    return any(ip in each for each in networks)


@functools.lru_cache(maxsize=16)
def _networks(
    places: tuple[str, ...],
) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(each) for each in places if "/" in each)


def optional_address(text: str) -> str:
    """The same, or nothing.

    Raises:
        ValueError: it is neither.
    """
    return address(text) if text.strip() else ""


def network(text: str) -> str:
    """What counts as one address where each has its share: of IPv6, the /64 that one client has."""
    try:
        ip = ipaddress.ip_address(peer(text).partition("%")[0])
    except ValueError:
        return text
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ipaddress.IPv6Network((int(ip), 64), strict=False))


def token(text: str) -> str:
    """A secret that clients show in a header.

    Raises:
        ValueError: it could not be shown there.
    """
    if text != text.strip() or not text.isascii() or not text.isprintable():
        raise ValueError("cannot be sent in a header: expected visible ASCII, no spaces around it")
    return text


def port_range(text: str) -> str:
    """Ports of UDP, such as 50000-50099; or nothing.

    Raises:
        ValueError: they are none.
    """
    text = text.strip()
    if text and not ports(text):
        raise ValueError("is no range of ports, such as 50000-50099 (from 1024 to 65535)")
    return text


def ports(text: str) -> range:
    """What ``port_range`` stands for; empty where it is none."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        return range(0)
    numbers = range(int(first), int(last) + 1)
    return numbers if numbers and numbers[0] >= 1024 and numbers[-1] <= 65_535 else range(0)


def host_and_port(text: str) -> str:
    """HOST or HOST:PORT, as ``urlsplit`` gives them of a URL that names it.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip().lower().removesuffix(".")
    if not _HOST_AND_PORT.fullmatch(text):
        raise ValueError("is neither HOST nor HOST:PORT, such as project.livekit.cloud")
    return text


def ice_server(text: str) -> str:
    """The URL of a STUN or TURN server.

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    if not _ICE_SERVER.fullmatch(text):
        raise ValueError("is neither stun:HOST:PORT nor turn:HOST:PORT?transport=udp")
    return text


def collector(text: str) -> str:
    """Where a collector takes traces by OTLP/HTTP, at the usual path where none is named; or
    nothing.

    Raises:
        ValueError: it is no URL, or holds what should be in none.
    """
    text = text.strip()
    if not text:
        return text
    try:
        parts = urlsplit(text)
        usable = parts.port != 0 and parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        usable = False
    if not usable or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("is no URL of a collector, such as http://127.0.0.1:4318")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise ValueError("has more than host and path: secrets go into OTEL_EXPORTER_OTLP_HEADERS")
    return text if parts.path.strip("/") else f"{text.rstrip('/')}/v1/traces"


def avatar_name(text: str) -> str:
    """A name of an avatar, as clients may say it.

    Raises:
        ValueError: none is called so.
    """
    if not text or not text.isprintable() or "/" in text or text[0] == "." or text.endswith(".lsa"):
        raise ValueError("is no avatar's name, as avatar list shows them")
    return text
