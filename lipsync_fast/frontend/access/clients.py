# SPDX-License-Identifier: Apache-2.0
"""What a request's head says of its client: the tokens that it shows, and whose it is."""

from __future__ import annotations

import base64
import contextlib
import hmac
from collections.abc import Callable
from urllib.parse import parse_qs

from lipsync_fast.config import Listen
from lipsync_fast.origins import client_address
from lipsync_fast.tokens.identities import Shown, bearer
from lipsync_fast.tokens.refusals import Refusal

Header = Callable[[str], str | None]
GATEWAY = "X-Lipsync-Fast-Gateway"
"""Carries the secret of the server's gateway."""
TOKEN_PROTOCOL = "lipsync.token."
"""Before a token, in URL-safe base64 of its UTF-8, among the subprotocols that a page offers: a
browser lets it set no header, and an address is no place for a secret."""
TICKET_PROTOCOL = "lipsync.ticket."
"""Before a ticket, as it is, there too."""


def shown(header: Header, path: str, upgrade: bool) -> Shown:
    """The tokens that a request shows.

    Args:
        header: a header's value by its name; None where there is none.
        path: of the request, with its query.
        upgrade: to a WebSocket, which is what tickets are for.
    """
    tokens, tickets = bearer(header("Authorization")), []
    query = parse_qs(path.partition("?")[2])
    for name in (header("Sec-WebSocket-Protocol") or "").split(",") if upgrade else ():
        offered = name.strip()
        if offered.startswith(TOKEN_PROTOCOL):
            encoded = offered.removeprefix(TOKEN_PROTOCOL)
            with contextlib.suppress(ValueError):
                tokens.append(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        elif offered.startswith(TICKET_PROTOCOL):
            tickets.append(offered.removeprefix(TICKET_PROTOCOL).encode())
    if upgrade:
        tickets += [word.encode() for word in query.get("ticket", [])]
    return Shown(tokens, [word.encode() for word in query.get("token", [])], tickets)


NO_GATEWAY = Refusal(403, "gateway", "this port is for the server's own gateway")


def is_gateway(secret: str, header: Header) -> bool:
    """Whether a connection to the gateway's listener is the gateway's."""
    given = (header(GATEWAY) or "").encode()
    return bool(secret) and hmac.compare_digest(given, secret.encode())


def behind_gateway(listen: Listen, forwarded: str | None) -> str | None:
    """The address of the client for whom the gateway asks; None where it asks for itself.

    Args:
        listen: the configuration.
        forwarded: the header X-Forwarded-For: what the client has sent of it, and, last, whom the
            gateway has seen.
    """
    if forwarded is None:
        return None
    before, _, peer = forwarded.rpartition(",")
    return client_address(listen, peer.strip(), before or None)
