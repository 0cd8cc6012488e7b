# SPDX-License-Identifier: Apache-2.0
"""Which servers may be reached by others: none that anybody could use by mistake."""

from __future__ import annotations

from typing import Any

import pytest

from lipsync_fast.config import Access, Listen
from lipsync_fast.errors import ConfigError
from lipsync_fast.supervisor.exposure import check_exposure

TLS: dict[str, Any] = {"tls_cert": "chain.pem"}
TOKEN: dict[str, Any] = {"token": "open sesame"}
PROXY: dict[str, Any] = {"proxies": ("192.0.2.1",)}


@pytest.mark.parametrize(
    "listen",
    [
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "localhost"},
        TOKEN | TLS,
        TLS | {"tls_client_ca": "ca.pem"},
        TOKEN | PROXY,
        TOKEN | {"proxies": ("127.0.0.1", "10.0.0.0/8")},
        {"insecure": True},
    ],
    ids=str,
)
def test_these_may(listen: dict[str, Any]) -> None:
    check_exposure(Listen(**({"host": "0.0.0.0"} | listen)), Access())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize(
    ("listen", "lacks"),
    [
        ({}, "asks nobody for a token and encrypts nothing"),
        ({"admin_token": "sesame"}, "asks nobody for a token and encrypts nothing"),
        (TOKEN, "encrypts nothing"),
        (TLS, "asks nobody for a token"),
        (PROXY, "asks nobody for a token"),
        (TOKEN | {"proxies": ("127.0.0.1", "::1")}, "encrypts nothing"),
    ],
    ids=str,
)
def test_these_may_not(host: str, listen: dict[str, Any], lacks: str) -> None:
    """And are told all ways out, on one line."""
    with pytest.raises(ConfigError) as caught:
        check_exposure(Listen(host=host, **listen), Access())
    words = str(caught.value)
    assert f"others can reach {host}, where this server {lacks}: " in words
    for way in ("--tls-cert", "--host 127.0.0.1", "--insecure", "docs/old-clients.md"):
        assert way in words
    assert "\n" not in words


def test_what_is_meant_is_told() -> None:
    assert check_exposure(Listen(host="::", insecure=True), Access()).startswith("asks nobody")
    assert check_exposure(Listen(host="::1", insecure=True), Access()) == ""


def test_tokens_that_name_somebody_are_tokens_too() -> None:
    listen = Listen(host="0.0.0.0", tls_cert="chain.pem")
    assert check_exposure(listen, Access(api_keys="keys.json")) == ""
    assert check_exposure(listen, Access(jwt_keys="keys.pem")) == ""
