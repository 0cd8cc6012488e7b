# SPDX-License-Identifier: Apache-2.0
"""Who may change what the server serves: people on this machine, or with the admin token.

A peer on this machine may be a proxy that speaks for others, or a browser that shows somebody's
page: neither is taken for a person here.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from lipsync_fast.canonical import is_loopback, same_place
from lipsync_fast.config import Listen
from lipsync_fast.frontend.access.clients import (
    Header,
    Refusal,
    shows_token,
    token_shown,
)
from lipsync_fast.origins import host_allowed

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


def admin_refusal(listen: Listen, header: Header, peer: str, path: str) -> Refusal | None:
    """Why a request may not change anything; None where it may.

    Args:
        header: a header's value by its name; None where there is none.
        peer: address at the other end of the TCP connection.
        path: of the request, with its query.
    """
    if not host_allowed(listen, header("Host")):
        return Refusal(403, "host", "the server is not known by this name; see listen.origins")
    if _admin_token_shown(listen, header("Authorization")):
        return None
    if not is_local(peer) or any(header(name) is not None for name in FORWARDED):
        # Who shows the token that lets sessions in has guessed nothing.
        guessed = shows_token(listen, header, path) and not (
            listen.token and token_shown(listen, header, path)
        )
        return Refusal(
            403,
            "wrong_token" if guessed else "admin",
            "only programs on this machine may do that, or whoever shows listen.admin_token",
        )
    if not _own_page(header("Origin"), header("Host")):
        return Refusal(403, "origin", "pages of other servers may not do that")
    if not token_shown(listen, header, path):
        return Refusal(
            401,
            "unauthorized",
            "a token is needed: send Authorization: Bearer TOKEN, or ?token=TOKEN",
        )
    return None


def _admin_token_shown(listen: Listen, authorization: str | None) -> bool:
    if not listen.admin_token or authorization is None or authorization[:7].lower() != "bearer ":
        return False
    shown = authorization[7:].strip()
    return hmac.compare_digest(shown.encode(), listen.admin_token.encode())


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
