# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests: an authority, and what it has signed."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest

x509 = pytest.importorskip("cryptography.x509", reason="needs the extra sign")

from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402

NAMES = "localhost", "app.example.org"
ADDRESS = ipaddress.ip_address("127.0.0.1")
PEM = serialization.Encoding.PEM


class Authority:
    """One that signs certificates.

    Args:
        folder: where files go: NAME.pem, the authority's own certificate; see ``issue``.

    Attributes:
        file: of its own certificate.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        own = _certificate(self._name, self._name, self._key.public_key())
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        own = own.add_extension(x509.KeyUsage(**usage | {"key_cert_sign": True}), critical=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def issue(self, name: str, password: bytes | None = None) -> Path:
        """Sign a certificate for this machine; its key is in NAME.key, beside it, and in NAME.both
        with it."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(_name(name), self._name, key.public_key())
        names = [*map(x509.DNSName, NAMES), x509.IPAddress(ADDRESS)]
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
        )
        signed = made.sign(self._key, hashes.SHA256()).public_bytes(PEM)
        locked = (
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption()
        )
        secret = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, locked)
        file = self._folder / f"{name}.pem"
        file.write_bytes(signed)
        file.with_suffix(".key").write_bytes(secret)
        file.with_suffix(".both").write_bytes(signed + secret)
        return file

    def trusted(self, own: Path | None = None) -> ssl.SSLContext:
        """A client's settings: it believes this authority, and shows a certificate of its own."""
        context = ssl.create_default_context(cafile=self.file)
        if own is not None:
            context.load_cert_chain(own.with_suffix(".both"))
        return context


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(public).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(hours=24))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
