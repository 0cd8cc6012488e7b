# SPDX-License-Identifier: Apache-2.0
"""What a server shows of itself in TLS, as it is handed from process to process."""

from __future__ import annotations

import msgspec


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate, as its files hold it (PEM).

    Attributes:
        chain: the certificate, and those between it and its root.
        key: its private key.
        client_ca: of whom clients must show a certificate; anybody may come where empty.
    """

    chain: bytes
    key: bytes
    client_ca: bytes = b""

    def __repr__(self) -> str:
        return "Certificate(…)"  # the key is in no log
