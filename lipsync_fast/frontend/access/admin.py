# SPDX-License-Identifier: Apache-2.0
"""Who may change what the server serves without a token of an admin: people on this machine.

A peer on this machine may be a proxy that speaks for others, or a browser that shows somebody's
page: neither is taken for a person here.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from lipsync_fast.canonical import is_loopback, same_place
from lipsync_fast.frontend.access.clients import Header
from lipsync_fast.tokens.refusals import Refusal

FORWARDED = (
    "Forwarded",
    "Via",
    "X-Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Proto",
    "X-Forwarded-Server",
    "Forwarded-For",
    "X-Real-IP",
    "X-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "Fastly-Client-IP",
    "X-Cluster-Client-IP",
    "X-Envoy-External-Address",
    "X-Original-URL",
)
"""What proxies add; one of them suffices."""


NO_ADMIN = Refusal(
    403,
    "admin",
    "only programs on this machine may do that, or whoever shows listen.admin_token"
    " or a token of an admin",
)
FOREIGN = Refusal(403, "origin", "pages of other servers may not do that")


def operators_refusal(header: Header, peer: str) -> Refusal | None:
    """Why a request is not taken for one of a person on this machine; None where it is.

    Args:
        header: a header's value by its name; None where there is none.
        peer: address at the other end of the TCP connection.
    """
    if not is_local(peer) or any(header(name) is not None for name in FORWARDED):
        return NO_ADMIN
    return None if _own_page(header("Origin"), header("Host")) else FOREIGN


def is_local(address: str) -> bool:
    """Whether an address is one of this machine's loopback ones."""
    return address != "localhost" and is_loopback(address)


def _own_page(origin: str | None, host: str | None) -> bool:
    """Whether no page asks, or one of this server's own under a name that only it has.

    Any name can be made to point to this machine: a loopback one cannot be anybody else's.
    """
    if origin is None:
        return True
    if "@" in origin:  # no browser sends a name and a password there
        return False
    try:
        name = urlsplit(origin).hostname or ""
        return host is not None and same_place(origin, host) and is_loopback(name)
    except ValueError:
        return False
