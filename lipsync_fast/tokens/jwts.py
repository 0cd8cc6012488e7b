# SPDX-License-Identifier: Apache-2.0
"""JSON Web Tokens of an issuer of the operator's (extra ``tokens``).

A token is believed where one of the configured keys has signed it. What a key is says which
algorithm its signatures are of, whatever a token's header claims: Ed25519 EdDSA, RSA RS256, a
secret HS256. So there is no token without a signature, and none signed with a public key as if it
were a secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from lipsync_fast.config import Access
from lipsync_fast.errors import ConfigError, LipsyncError, TokenError
from lipsync_fast.extras import how_to_get
from lipsync_fast.logs import get_logger
from lipsync_fast.tokens.files import read_keys
from lipsync_fast.tokens.subject import MOST_NAME, Allowance, Subject

log = get_logger("lipsync.tokens")
SETTING = "access.jwt_keys"
CLAIM = "lipsync"
"""The claim that holds an ``Allowance``."""
MOST_KEYS = 32
LEAST_SECRET, LEAST_RSA = 32, 2048
"""Bytes of a secret, bits of an RSA key."""
_BEGIN, _END = b"-----BEGIN", b"-----END"


@dataclass(frozen=True, slots=True)
class JwtKey:
    """A key.

    Attributes:
        algorithm: of its signatures.
        mark: tells it from others, and may be shown as a signature may.
        id: the ``kid`` of a JWKS, else empty.
    """

    value: Any
    algorithm: str
    mark: str
    id: str = ""

    @classmethod
    def of(cls, value: Any, id_: str = "") -> JwtKey:
        """A secret, as bytes, or a public key.

        Raises:
            LipsyncError: it is too weak, or of no kind that is used here.
        """
        if isinstance(value, bytes):
            if len(value) < LEAST_SECRET:
                got = f"{len(value)} bytes"
                raise LipsyncError(f"is a secret of {got}, expected {LEAST_SECRET} or more")
            return cls(value, "HS256", hmac.digest(value, b"lipsync-fast", "sha256").hex(), id_)
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        algorithm = _algorithm(value)
        der = value.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(value, algorithm, hashlib.sha256(der).hexdigest(), id_)


@dataclass(frozen=True, slots=True)
class JwtKeys:
    """Keys of an issuer, and what its tokens must say."""

    keys: tuple[JwtKey, ...]
    access: Access

    @classmethod
    def read(cls, path: str, access: Access) -> JwtKeys:
        """Read the file of keys.

        Raises:
            ConfigError: it holds no key that can be used, or the extra is not installed.
        """
        _library()
        data = read_keys(path, SETTING)
        try:
            if _BEGIN in data:
                keys = list(_of_pem(data))
            elif data.lstrip()[:1] == b"{":
                keys = list(_of_jwks(data))
            else:
                keys = [JwtKey.of(data.strip())]
        except LipsyncError as error:
            raise ConfigError(f"{SETTING}: {path}: {error}") from None
        if not 1 <= len(keys) <= MOST_KEYS:
            raise ConfigError(f"{SETTING}: {path}: {len(keys)} keys, expected 1 to {MOST_KEYS}")
        return cls(tuple(keys), access)

    def believes(self, subject: Subject) -> bool:
        """Whether the key that has signed somebody's token is still among them."""
        return any(key.mark == subject.signer for key in self.keys)

    def subject(self, token: str) -> Subject:
        """Whose token it is.

        Raises:
            TokenError: it is not to be believed, or not now, or not here.
        """
        jwt, access = _library(), self.access
        wrong = TokenError("wrong_token", "the token is not signed with a key of this server's")
        try:
            head = jwt.get_unverified_header(token)
            algorithm, id_ = head.get("alg"), head.get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise wrong from None
        for key in self.keys:
            if key.algorithm != algorithm or (key.id and id_ is not None and key.id != id_):
                continue
            try:
                claims = jwt.decode(
                    token,
                    key.value,
                    algorithms=[key.algorithm],
                    audience=access.jwt_audience or None,
                    issuer=access.jwt_issuer or None,
                    leeway=access.jwt_leeway_s,
                    options={
                        "require": ["exp", "sub"],
                        "verify_aud": bool(access.jwt_audience),
                        "verify_iss": bool(access.jwt_issuer),
                    },
                )
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, RecursionError, OverflowError) as error:
                raise _told(jwt, error) from None
            return _subject(claims, key)
        raise wrong


def _told(jwt: Any, error: Exception) -> TokenError:
    """Why a token whose signature may be right is refused."""
    if isinstance(error, jwt.ExpiredSignatureError):
        return TokenError("expired", "the token has run out; get a new one")
    if isinstance(error, jwt.InvalidAudienceError):
        return TokenError("wrong_audience", "the token is for another server (aud)")
    if isinstance(error, jwt.InvalidIssuerError):
        return TokenError("wrong_issuer", "the token is of another issuer (iss)")
    if isinstance(error, jwt.MissingRequiredClaimError):
        claim = str(getattr(error, "claim", ""))
        if claim == "aud":
            return TokenError("wrong_audience", "the token does not say for which server it is")
        if claim == "iss":
            return TokenError("wrong_issuer", "the token does not say who has issued it")
        return TokenError("wrong_token", f"the token has no claim {claim}")
    return TokenError("wrong_token", "the token cannot be believed")


def _subject(claims: dict[str, Any], key: JwtKey) -> Subject:
    name = claims.get("sub")
    if not isinstance(name, str) or not 1 <= len(name) <= MOST_NAME or not name.isprintable():
        raise TokenError("wrong_token", f"the token's sub: expected 1 to {MOST_NAME} characters")
    try:
        allowed = msgspec.convert(claims.get(CLAIM, {}), Allowance)
    except msgspec.ValidationError as error:
        raise TokenError("wrong_token", f"the token's claim {CLAIM}: {error}") from None
    return Subject(name=name, by="jwt", signer=key.mark, allowed=allowed)


# ---------------------------------------------------------------- keys
def _of_pem(data: bytes) -> Iterator[JwtKey]:
    """Public keys, one behind the other.

    Raises:
        LipsyncError: one of them is none.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY-" in data:
        raise LipsyncError("holds a private key: it is the issuer's, the server needs the public")
    for block in data.split(_BEGIN)[1:]:
        pem = _BEGIN + block.partition(_END)[0] + _END + block.partition(_END)[2].split(b"\n")[0]
        try:
            key = load_pem_public_key(pem + b"\n")
        except ValueError:
            raise LipsyncError("a key in it is not PEM of a public key") from None
        yield JwtKey.of(key)


def _of_jwks(data: bytes) -> Iterator[JwtKey]:
    """The keys of a JWKS that can be used; others are passed over.

    Raises:
        LipsyncError: it is none, or holds a private key.
    """
    jwt = _library()
    try:
        found = json.loads(data)["keys"]
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LipsyncError('is no JWKS: expected {"keys": […]}') from None
    algorithms = jwt.algorithms
    kinds = {
        "OKP": algorithms.OKPAlgorithm,
        "RSA": algorithms.RSAAlgorithm,
        "oct": algorithms.HMACAlgorithm,
    }
    for each in found:
        kind, id_ = each.get("kty"), each.get("kid", "")
        if kind not in kinds or each.get("use", "sig") != "sig" or not isinstance(id_, str):
            continue
        if kind != "oct" and "d" in each:
            raise LipsyncError(
                "holds a private key: it is the issuer's, the server needs the public"
            )
        try:
            made = JwtKey.of(kinds[kind].from_jwk(each), id_)
        except (jwt.PyJWTError, ValueError, TypeError, LipsyncError) as error:
            log.warning("a key is passed over", kid=id_, reason=str(error))
            continue
        if each.get("alg", made.algorithm) == made.algorithm:
            yield made


def _algorithm(key: object) -> str:
    """The one algorithm of a public key.

    Raises:
        LipsyncError: there is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    if isinstance(key, RSAPublicKey):
        if key.key_size < LEAST_RSA:
            raise LipsyncError(f"holds an RSA key of {key.key_size} bits, expected {LEAST_RSA}")
        return "RS256"
    raise LipsyncError("holds a key that is neither Ed25519 nor RSA")


def _library() -> Any:
    """PyJWT.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cryptography
        import jwt
    except ImportError:
        raise ConfigError(
            f"{SETTING} needs PyJWT and cryptography: {how_to_get('tokens')}"
        ) from None
    assert cryptography
    return jwt
