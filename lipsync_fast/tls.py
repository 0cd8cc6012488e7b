# SPDX-License-Identifier: Apache-2.0
"""TLS: the certificate is read from its files by the supervisor, and handed to those that listen.

Who serves under it gets its content, not its files' names: so all have the same one, files that are
half written hurt nobody, and a process that is replaced gets the one that was last good.
"""

from __future__ import annotations

import os
import ssl

from lipsync_fast.certificates import Certificate
from lipsync_fast.config import Listen
from lipsync_fast.errors import ConfigError

MOST_BYTES = 128 << 10
"""Of each file; a whole chain has some 10 kB."""
PROTOCOLS = ["http/1.1"]
"""Of ALPN: what is spoken inside."""
_CERTIFICATE, _KEY, _ENCRYPTED = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----", b"ENCRYPTED"


def read_certificate(listen: Listen) -> Certificate | None:
    """What the files of the configuration hold, once it is known that they can be used.

    Raises:
        ConfigError: names the key, the file, and what is wrong with it.
    """
    if not listen.tls_cert:
        return None
    chain = _read("listen.tls_cert", listen.tls_cert, _CERTIFICATE, "certificate")
    if listen.tls_key:
        key = _read("listen.tls_key", listen.tls_key, _KEY, "private key")
    elif _KEY in chain:
        key = chain
    else:
        raise ConfigError(f"listen.tls_key: expected the file of the key of {listen.tls_cert}")
    if _ENCRYPTED in key:
        file = listen.tls_key or listen.tls_cert
        raise ConfigError(f"listen.tls_key: {file}: is encrypted; expected one without a password")
    client_ca = b""
    if listen.tls_client_ca:
        what = ("listen.tls_client_ca", listen.tls_client_ca)
        client_ca = _read(*what, _CERTIFICATE, "certificate")
        try:
            _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{what[0]}: {what[1]}: {_words(error)}") from None
    found = Certificate(chain=chain, key=key, client_ca=client_ca)
    try:
        server_context(found)
    except (ssl.SSLError, ValueError) as error:
        reason = _words(error)
        raise ConfigError(f"listen.tls_cert: {listen.tls_cert}: {reason}") from None
    return found


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """A server's settings of TLS 1.2 and later.

    Nothing of a connection outlives it: there are no tickets to come back with, which would let in
    who has no certificate any more, and no renegotiation, which costs a server more than a client.

    Raises:
        ssl.SSLError, ValueError: it cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(PROTOCOLS)
    chain, key = _in_memory(certificate.chain), _in_memory(certificate.key)
    try:  # OpenSSL reads these from files alone
        context.load_cert_chain(f"/proc/self/fd/{chain}", f"/proc/self/fd/{key}", lambda: "")
    finally:
        os.close(chain)
        os.close(key)
    if certificate.client_ca:
        _trust(context, certificate.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _trust(context: ssl.SSLContext, authorities: bytes) -> None:
    context.load_verify_locations(cadata=authorities.decode("ascii"))


def _in_memory(content: bytes) -> int:
    file = os.memfd_create("lipsync-certificate", os.MFD_CLOEXEC)
    os.write(file, content)
    return file


def _read(key: str, path: str, mark: bytes, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{key}: {path}: {reason}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{key}: {path}: longer than {MOST_BYTES >> 10} KiB; no {what} is")
    if mark not in content:
        raise ConfigError(f"{key}: {path}: holds no {what} (PEM)")
    return content


def _words(error: ssl.SSLError | ValueError) -> str:
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    if reason == "KEY_VALUES_MISMATCH":
        return "listen.tls_key is not the key of this certificate"
    return f"cannot be read ({reason.lower().replace('_', ' ') or 'not PEM'})"
