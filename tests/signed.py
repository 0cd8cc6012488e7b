# SPDX-License-Identifier: Apache-2.0
"""An issuer of JWTs, for tests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Issuer:
    """Keys of one kind, and the tokens that they sign.

    Args:
        algorithm: EdDSA, RS256 or HS256.
    """

    def __init__(self, algorithm: str = "EdDSA", kid: str = "") -> None:
        self.algorithm, self.kid = algorithm, kid
        self.key: Any = b"a secret of thirty-two bytes, and some" + kid.encode()
        if algorithm == "EdDSA":
            self.key = ed25519.Ed25519PrivateKey.generate()
        elif algorithm == "RS256":
            self.key = rsa.generate_private_key(65537, 2048)

    @property
    def public(self) -> bytes:
        """What a server needs, as a file: PEM, or the secret."""
        if isinstance(self.key, bytes):
            return self.key + b"\n"
        pem: bytes = self.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return pem

    @property
    def jwk(self) -> dict[str, Any]:
        """The same as an entry of a JWKS."""
        algorithms = jwt.algorithms
        if isinstance(self.key, bytes):
            made = algorithms.HMACAlgorithm.to_jwk(self.key, as_dict=True)
        elif self.algorithm == "RS256":
            made = algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        else:
            made = algorithms.OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {**made, "kid": self.kid, "use": "sig"}

    def token(self, sub: str = "anna", seconds: float = 600.0, **claims: Any) -> str:
        """A token; claims that are None are left out."""
        said = {"sub": sub, "exp": int(time.time() + seconds)} | claims
        said = {name: value for name, value in said.items() if value is not None}
        headers = {"kid": self.kid} if self.kid else None
        return jwt.encode(said, self.key, self.algorithm, headers)


def jwks(*issuers: Issuer) -> str:
    """Their keys, as a JWKS."""
    return json.dumps({"keys": [issuer.jwk for issuer in issuers]})


def put(path: Path, data: bytes | str) -> str:
    """Put a file in place in one step."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data if isinstance(data, bytes) else data.encode())
    beside.replace(path)
    return str(path)
