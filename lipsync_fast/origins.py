# SPDX-License-Identifier: Apache-2.0
"""By which name a server may be called, pages of which origin may ask it, and where a client is."""

from __future__ import annotations

from urllib.parse import urlsplit

from lipsync_fast import canonical
from lipsync_fast.canonical import is_loopback
from lipsync_fast.config import Listen


def host_allowed(listen: Listen, host: str | None) -> bool:
    """Whether the Host is one that this server may be called by.

    A server that is bound to this machine alone is called by its loopback names alone: else a
    foreign page could reach it under a name of its own that points here. Behind a proxy, the names
    in ``listen.origins`` are known too.
    """
    if host is None or not canonical.is_bound_here(listen.host):
        return True
    name = _host_of(f"//{host}")
    return is_loopback(name) or name in {listen.host, *map(_host_of, listen.origins)} - {""}


def origin_allowed(listen: Listen, origin: str | None, host: str | None) -> bool:
    """Whether a page of that Origin may connect: the server's own, or one that is configured."""
    if origin is None or "*" in listen.origins:
        return True
    try:
        if canonical.origin(origin) in listen.origins:
            return True
    except ValueError:
        return False
    return host is not None and canonical.same_place(origin, host)


def client_address(listen: Listen, peer: str, forwarded: str | None) -> str:
    """A client's address: its peer's, or what a proxy of ours says of it.

    Args:
        listen: the configuration.
        peer: address at the other end of the TCP connection.
        forwarded: the header X-Forwarded-For. Each proxy appends whom it has seen, so the last one
            that is no proxy is the client; what stands before it the client may have written.
    """
    peer = canonical.peer(peer)
    if not canonical.is_among(peer, listen.proxies) or forwarded is None:
        return peer
    for each in reversed(forwarded.split(",")):
        try:
            address = canonical.address(each)
        except ValueError:
            return peer
        if not canonical.is_among(address, listen.proxies):
            return address
    return peer


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
