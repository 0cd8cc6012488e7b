# SPDX-License-Identifier: Apache-2.0
"""Who may connect: Origin, Host and token, decided from a request's head alone."""

from __future__ import annotations

import base64
import contextlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from lipsync_fast import canonical
from lipsync_fast.config import Listen
from lipsync_fast.frontend.access.admission import RETRY_S, retry_after
from lipsync_fast.origins import host_allowed, origin_allowed

Header = Callable[[str], str | None]
GATEWAY = "X-Lipsync-Fast-Gateway"
"""Carries the secret of the server's gateway."""
TOKEN_PROTOCOL = "lipsync.token."
"""Before a token, in URL-safe base64 of its UTF-8, among the subprotocols that a page offers: a
browser lets it set no header, and an address is no place for a secret."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused: the HTTP status, a word to count it by, and a sentence."""

    status: int
    reason: str
    message: str

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says of it, in every protocol."""
        if self.status in (429, 503):
            return {"Retry-After": retry_after(RETRY_S)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def refusal(listen: Listen, header: Header, path: str) -> Refusal | None:
    """Why a request may not go on; None where it may.

    Args:
        listen: the configuration.
        header: a header's value by its name; None where there is none.
        path: of the request, with its query.
    """
    if not host_allowed(listen, header("Host")):
        return Refusal(403, "host", "the server is not known by this name; see listen.origins")
    if not origin_allowed(listen, header("Origin"), header("Host")):
        return Refusal(403, "origin", "pages of this origin may not connect; see listen.origins")
    if not token_shown(listen, header, path):
        return Refusal(
            401,
            "unauthorized",
            "a token is needed: send Authorization: Bearer TOKEN, or ?token=TOKEN",
        )
    return None


def token_shown(listen: Listen, header: Header, path: str) -> bool:
    """Whether the configured token was shown, or none is configured."""
    if not listen.token:
        return True
    token = listen.token.encode()
    return any(hmac.compare_digest(shown, token) for shown in _tokens(header, path))


def shows_token(listen: Listen, header: Header, path: str) -> bool:
    """Whether a request shows a token, right or wrong, where the server asks for one."""
    return bool(listen.token or listen.admin_token) and bool(_tokens(header, path))


def _tokens(header: Header, path: str) -> list[bytes]:
    shown = []
    authorization = header("Authorization")
    if authorization is not None and authorization[:7].lower() == "bearer ":
        word = authorization[7:].strip()
        shown.append(word.encode())
        with contextlib.suppress(UnicodeEncodeError):  # bytes of UTF-8, as they are on the wire
            shown.append(word.encode("latin-1"))
    for name in (header("Sec-WebSocket-Protocol") or "").split(","):
        encoded = name.strip().removeprefix(TOKEN_PROTOCOL)
        if encoded != name.strip():
            with contextlib.suppress(ValueError):
                shown.append(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    shown += [word.encode() for word in parse_qs(path.partition("?")[2]).get("token", [])]
    return shown


def gateway_refusal(secret: str, header: Header) -> Refusal | None:
    """Why a connection to the gateway's listener may not go on; None where the gateway asks."""
    shown = (header(GATEWAY) or "").encode()
    if secret and hmac.compare_digest(shown, secret.encode()):
        return None
    return Refusal(403, "gateway", "this port is for the server's own gateway")


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


def client_address(listen: Listen, peer: str, forwarded: str | None) -> str:
    """A client's address: its peer's, or what a proxy of ours says of it.

    Args:
        listen: the configuration.
        peer: address at the other end of the TCP connection.
        forwarded: the header X-Forwarded-For. Each proxy appends whom it has seen, so the last one
            that is no proxy is the client; what stands before it the client may have written.
    """
    peer = canonical.peer(peer)
    if peer not in listen.proxies or forwarded is None:
        return peer
    for each in reversed(forwarded.split(",")):
        try:
            address = canonical.address(each)
        except ValueError:
            return peer
        if address not in listen.proxies:
            return address
    return peer
