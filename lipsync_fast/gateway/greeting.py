# SPDX-License-Identifier: Apache-2.0
"""What the gateway's clients are greeted with where the server speaks TLS."""

from __future__ import annotations

import ssl
from typing import Any

from lipsync_fast.certificates import Certificate
from lipsync_fast.tls import server_context


class Greeting:
    """The newest certificate, as servers of asyncio and of gRPC take it.

    Attributes:
        context: of servers of asyncio, which keep the one that they were started with: it hands
            each connection on to the newest one.
    """

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._newest = self.context = server_context(certificate)
        if certificate.client_ca:
            # A session of TLS 1.2 can be gone on with, by whom a newer certificate lets in no more.
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.sni_callback = self._hand_on

    def renew(self, certificate: Certificate) -> None:
        """Greet those that come from now on with another certificate."""
        self._newest = server_context(certificate)
        self._certificate = certificate

    def _hand_on(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        connection.context = self._newest

    def grpc_credentials(self) -> Any:
        """Of a server of gRPC; it asks for the newest certificate with each connection."""
        import grpc

        shown: Certificate | None = None

        def newest() -> Any:
            nonlocal shown
            if shown is self._certificate:
                return None
            shown = self._certificate
            return grpc.ssl_server_certificate_configuration(
                [(shown.key, shown.chain)], shown.client_ca or None
            )

        return grpc.dynamic_ssl_server_credentials(
            newest(), newest, require_client_authentication=bool(self._certificate.client_ca)
        )
