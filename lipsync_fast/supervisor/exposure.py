# SPDX-License-Identifier: Apache-2.0
"""Whether a server may be reached by others: not without a word where anybody could use it."""

from __future__ import annotations

import ipaddress

from lipsync_fast.canonical import is_bound_here
from lipsync_fast.config import Access, Listen
from lipsync_fast.errors import ConfigError


def check_exposure(listen: Listen, access: Access) -> str:
    """See that who can be reached by others asks who they are, and encrypts what is said.

    A proxy on another machine may be what encrypts: where ``listen.proxies`` names one, the way to
    it is taken to be the operator's own. That others go round it is no reason to let them in.

    Returns:
        What it does not, where ``listen.insecure`` says that this is meant; else nothing.

    Raises:
        ConfigError: it does not, and ``listen.insecure`` does not say that this is meant.
    """
    if is_bound_here(listen.host):
        return ""
    lacks = []
    if not asks_who(listen, access):
        lacks.append("asks nobody for a token")
    if not (listen.tls_cert or any(map(_is_elsewhere, listen.proxies))):
        lacks.append("encrypts nothing")
    what = " and ".join(lacks)
    if not what or listen.insecure:
        return what
    raise ConfigError(
        f"listen.host: others can reach {listen.host}, where this server {what}: give it a token"
        " and --tls-cert and --tls-key; or --host 127.0.0.1, with a proxy in front"
        " (docs/proxies.md); or --insecure, as the service of old was (docs/old-clients.md)"
    )


def asks_who(listen: Listen, access: Access) -> bool:
    """Whether clients must show who they are before they are served."""
    known = listen.token or access.jwt_keys or access.api_keys
    return bool(known or listen.tls_client_ca)


def _is_elsewhere(proxy: str) -> bool:
    """Whether a proxy, or a network of them, is on other machines."""
    return not ipaddress.ip_network(proxy, strict=False).is_loopback
