# SPDX-License-Identifier: Apache-2.0
"""Who calls, and with what status a call ends that cannot be answered in its own message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import grpc

from lipsync_fast import canonical
from lipsync_fast.errors import FrontError, LipsyncError
from lipsync_fast.gateway.fronts import Client, passed_on

Context = Any
"""A call, as grpc.aio hands it on."""
STATUSES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Of those whom a front lets in not at all: no answer in a message would be one to them."""


class Stalled(Exception):  # noqa: N818 (ends a call, reports no mistake)
    """The client has not read for too long."""


class Shares:
    """The calls that each client network has open: none has all of them.

    Args:
        most: calls of one network at once.
        proxies: addresses, or networks, that may have more: others' clients come from there. So
            may this machine's own.
    """

    def __init__(self, most: int, proxies: Collection[str] = ()) -> None:
        self._most, self._proxies = most, proxies
        self._of: Counter[str] = Counter()

    @contextmanager
    def call(self, address: str) -> Iterator[bool]:
        """A call, from its beginning to its end; whether it fits."""
        network = canonical.network(address)
        free = canonical.is_among(address, self._proxies) or canonical.is_loopback(address)
        self._of[network] += 1
        try:
            yield free or self._of[network] <= self._most
        finally:
            self._of[network] -= 1
            if not self._of[network]:
                del self._of[network]


def client_of(context: Context) -> Client:
    """Whose call it is."""
    shown: dict[str, list[str]] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str) and key in ("authorization", "x-forwarded-for"):
            shown.setdefault(key, []).append(value)
    return Client(
        address=address_of(context.peer()),
        forwarded=passed_on(shown.get("x-forwarded-for", [])),
        authorization=passed_on(shown.get("authorization", [])[:1]),
    )


def address_of(peer: str) -> str:
    """The address in what gRPC calls a peer, such as "ipv6:%5B::1%5D:4711"; else all of it."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return rest.rpartition(":")[0].strip("[]")


def is_refused(error: FrontError) -> bool:
    """Whether the client may not ask at all."""
    return error.status in STATUSES


def status_of(error: LipsyncError) -> grpc.StatusCode:
    """The status of a call that has no message to say it in."""
    refused = error.status if isinstance(error, FrontError) else 0
    return STATUSES.get(refused, grpc.StatusCode.UNAVAILABLE)


def reason_of(error: LipsyncError) -> str:
    """The word that goes with it, where a front has given one."""
    return error.reason if isinstance(error, FrontError) else ""
