# SPDX-License-Identifier: Apache-2.0
"""Who is believed to be whom: JWTs of an issuer, API keys of a file, and the shared token."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jwt", reason="the extra tokens is not installed")

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from entering import entrance, refused
from hypothesis import given
from hypothesis import strategies as st
from signed import Issuer, jwks, put

from lipsync_fast.config import Access, Listen, ServeConfig
from lipsync_fast.errors import AvatarNotFoundError, ConfigError, LipsyncError, TokenError
from lipsync_fast.frontend.access.clients import TOKEN_PROTOCOL
from lipsync_fast.tokens import watched
from lipsync_fast.tokens.api_keys import ApiKeys, add_key, remove_key
from lipsync_fast.tokens.identities import Identities, Shown, check
from lipsync_fast.tokens.subject import ANYONE, Allowance, Subject

ISSUERS = {kind: Issuer(kind) for kind in ("EdDSA", "RS256", "HS256")}


@pytest.fixture(autouse=True)
def _looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_S", -1.0)


def identities(folder: Path, keys: bytes | str, token: str = "", **access: Any) -> Identities:
    """A server that believes those keys."""
    made = Access(jwt_keys=put(folder / "keys", keys), **access)
    return Identities(ServeConfig(listen=Listen(token=token), access=made))


def who(known: Identities, token: str) -> Subject | str:
    """Whom a token is of, or the word for why it is not believed."""
    try:
        return known.of(Shown([token.encode()])) or "none"
    except TokenError as error:
        return error.reason


def header(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Host": "127.0.0.1"}


# ---------------------------------------------------------------- JWTs
@pytest.mark.parametrize("kind", ISSUERS)
def test_a_token_says_who_it_is_and_what_may_be_done(kind: str, tmp_path: Path) -> None:
    issuer = ISSUERS[kind]
    known = identities(tmp_path, issuer.public)
    claim = {"avatars": ["demo"], "sessions": 3, "speakers": 2, "pace": "live"}
    claim |= {"seconds_per_day": 60.5, "connects_per_minute": 9, "admin": True}
    found = who(known, issuer.token(lipsync=claim))
    assert isinstance(found, Subject)
    assert (found.account, found.allowed.avatars) == ("jwt:anna", ("demo",))
    assert found.allowed == Allowance(**claim | {"avatars": ("demo",)})  # type: ignore[arg-type]
    assert isinstance(again := who(known, issuer.token()), Subject)
    assert again == Subject(name="anna", by="jwt", signer=found.signer)
    assert who(known, issuer.token(seconds=-60)) == "expired"
    assert who(known, issuer.token(seconds=-5)) == again, "clocks differ"
    assert who(known, Issuer(kind, kid="another").token()) == "wrong_token"
    assert who(known, issuer.token()[:-4]) == "wrong_token"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": "a" * 201},
        {"nbf": 4e9},
        {"lipsync": []},
        {"lipsync": {"avatar": "demo"}},
        {"lipsync": {"avatars": "demo"}},
        {"lipsync": {"sessions": 0}},
        {"lipsync": {"admin": "yes"}},
        {"lipsync": {"pace": "fast"}},
        {"lipsync": None, "sub": None},
    ],
    ids=repr,
)
def test_what_a_token_does_not_say_rightly_is_not_taken_for_no_limit(
    claims: dict[str, Any], tmp_path: Path
) -> None:
    issuer = ISSUERS["HS256"]
    said = {"sub": "anna", "exp": 4_000_000_000} | claims
    made = jwt.encode({k: v for k, v in said.items() if v is not None}, issuer.key, "HS256")
    assert who(identities(tmp_path, issuer.public), made) == "wrong_token"


def test_a_key_is_of_one_algorithm_whatever_a_token_claims(tmp_path: Path) -> None:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"sub": "anna", "exp": 4_000_000_000}
    for kind in ("EdDSA", "RS256"):
        public = ISSUERS[kind].public
        known = identities(tmp_path, public)
        for secret in (public, public.strip()):
            # Signed with the public key as if it were a secret, as only an attacker would.
            message = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
            mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
            signature = base64.urlsafe_b64encode(mac.sign(message.encode(), secret)).decode()
            assert who(known, f"{message}.{signature.rstrip('=')}") == "wrong_token"
        for none in ("none", "None", "", None, 7):
            unsigned = f"{part({'alg': none})}.{part(claims)}."
            assert who(known, unsigned) == "wrong_token"
    critical = jwt.encode(claims, ISSUERS["HS256"].key, "HS256", {"crit": ["x"], "x": 1})
    assert who(identities(tmp_path, ISSUERS["HS256"].public), critical) == "wrong_token"


def test_for_whom_and_from_whom(tmp_path: Path) -> None:
    issuer = ISSUERS["EdDSA"]
    known = identities(tmp_path, issuer.public, jwt_audience="faces", jwt_issuer="https://id")
    assert isinstance(who(known, issuer.token(aud="faces", iss="https://id")), Subject)
    assert isinstance(who(known, issuer.token(aud=["x", "faces"], iss="https://id")), Subject)
    assert who(known, issuer.token(aud="voices", iss="https://id")) == "wrong_audience"
    assert who(known, issuer.token(iss="https://id")) == "wrong_audience"
    assert who(known, issuer.token(aud="faces", iss="https://other")) == "wrong_issuer"
    assert who(known, issuer.token(aud="faces")) == "wrong_issuer"
    anywhere = identities(tmp_path, issuer.public)
    assert isinstance(who(anywhere, issuer.token(aud="voices", iss="x")), Subject)


def test_keys_change_while_tokens_are_shown(tmp_path: Path, capsys: Any) -> None:
    old, new, pinned = Issuer("EdDSA", "2025"), Issuer("RS256", "2026"), Issuer("HS256", "mac")
    known = identities(tmp_path, jwks(old))
    assert isinstance(who(known, old.token()), Subject)
    assert who(known, new.token()) == "wrong_token"
    put(tmp_path / "keys", jwks(old, new, pinned))
    assert all(isinstance(who(known, each.token()), Subject) for each in (old, new, pinned))
    new.kid = "2025"
    assert who(known, new.token()) == "wrong_token", "the key of that name has not signed it"
    put(tmp_path / "keys", '{"keys": [')
    assert isinstance(who(known, old.token()), Subject), "what cannot be read changes nothing"
    (tmp_path / "keys").unlink()
    assert isinstance(who(known, old.token()), Subject)
    put(tmp_path / "keys", Issuer("RS256").public)
    assert who(known, old.token()) == "wrong_token"
    put(tmp_path / "keys", ISSUERS["EdDSA"].public + ISSUERS["RS256"].public)
    assert isinstance(who(known, ISSUERS["RS256"].token()), Subject)
    assert isinstance(who(known, ISSUERS["EdDSA"].token()), Subject)


@pytest.mark.parametrize("kind", ISSUERS)
def test_who_came_by_a_key_that_is_taken_away_is_known(kind: str, tmp_path: Path) -> None:
    old, new = Issuer(kind, "2025"), Issuer(kind, "2026")
    known = identities(tmp_path, jwks(old))
    anna = who(known, old.token())
    assert isinstance(anna, Subject)
    put(tmp_path / "keys", jwks(new, old))
    assert not known.is_revoked(anna)
    put(tmp_path / "keys", old.public)
    assert not known.is_revoked(anna), "the same key in another form"
    for gone in ("", '{"keys": []}'):
        put(tmp_path / "keys", gone)
        assert not known.is_revoked(anna), "what cannot be read changes nothing"
    new.kid = "2025"
    put(tmp_path / "keys", jwks(new))
    assert known.is_revoked(anna), "a name is no key"
    assert not known.is_revoked(ANYONE)
    put(tmp_path / "keys", jwks(new, old))
    assert not known.is_revoked(anna)


def _private() -> bytes:
    key = ISSUERS["RS256"].key
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def _public(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "secret of 0 bytes"),
        (b"too short a secret", "expected 32 or more"),
        (_private(), "private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not PEM"),
        (_public(ec.generate_private_key(ec.SECP256R1())), "neither Ed25519 nor RSA"),
        (_public(rsa.generate_private_key(65537, 1024)), "1024 bits"),
        (b'{"keys": []}', "0 keys"),
        (b'{"keys": [{"kty": "EC", "crv": "P-256"}]}', "0 keys"),
        (b'{"keys": 7}', "no JWKS"),
        (b"{}", "no JWKS"),
        (b'{"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}', "0 keys"),
        (b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "AA"}]}', "private key"),
        (b"{" * 100_000, "no JWKS"),
    ],
    ids=range(13),
)
def test_files_that_hold_no_key(data: bytes, words: str, tmp_path: Path) -> None:
    config = ServeConfig(access=Access(jwt_keys=put(tmp_path / "keys", data)))
    with pytest.raises(ConfigError, match=words):
        check(config)
    assert who(Identities(config), ISSUERS["RS256"].token()) == "wrong_token"


def test_what_cannot_be_configured(tmp_path: Path) -> None:
    for access, words in (
        (Access(jwt_keys=str(tmp_path / "none")), "cannot be read"),
        (Access(jwt_keys=str(tmp_path)), "directory"),
        (Access(api_keys=str(tmp_path / "none")), "cannot be read"),
        (Access(jwt_audience="x"), "of no use without access.jwt_keys"),
    ):
        with pytest.raises(ConfigError, match=f"(?i){words}"):
            check(ServeConfig(access=access))


@given(st.binary(max_size=300))
def test_nonsense_is_not_believed(word: bytes) -> None:
    known = Identities(ServeConfig(listen=Listen(token="right")))
    if word != b"right":
        with pytest.raises(TokenError):
            known.of(Shown([word]))


# ---------------------------------------------------------------- API keys
def test_keys_are_made_shown_once_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "kiosk", Allowance(avatars=("demo",), speakers=1))
    admin = add_key(file, "ops", Allowance(admin=True))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = file.read_text()
    assert key not in kept
    assert key.rpartition("_")[2] not in kept
    known = Identities(ServeConfig(access=Access(api_keys=str(file))))
    found = who(known, key)
    assert isinstance(found, Subject)
    assert (found.account, found.allowed.avatars) == ("key:kiosk", ("demo",))
    assert who(known, admin) != found
    assert who(known, key[:-1] + ("A" if key[-1] != "A" else "B")) == "wrong_token"
    assert who(known, "lsf_000000000000_" + key.rpartition("_")[2]) == "wrong_token"
    assert who(known, "lsf_") == "wrong_token"
    with pytest.raises(LipsyncError, match="has a key already"):
        add_key(file, "kiosk", Allowance())
    assert remove_key(file, "kiosk").name == "kiosk"
    assert who(known, key) == "wrong_token"
    with pytest.raises(LipsyncError, match="no key 'kiosk'"):
        remove_key(file, "kiosk")
    assert isinstance(who(known, admin), Subject)
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"], "nothing is left beside it"


def test_a_key_ends(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "guest", Allowance(), ends=1.0)
    with pytest.raises(TokenError) as caught:
        ApiKeys.read(str(file)).subject(key)
    assert caught.value.reason == "expired"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2}', '{"version": 1, "keys": [{}]}', "{" * 50_000], ids=range(5)
)
def test_a_file_that_is_none_is_not_written_over(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(LipsyncError):
        add_key(file, "kiosk", Allowance())
    assert file.read_text() == text


# ---------------------------------------------------------------- at the door
def test_each_way_of_showing_a_token(tmp_path: Path) -> None:
    issuer, file = ISSUERS["EdDSA"], tmp_path / "keys.json"
    key = add_key(file, "kiosk", Allowance())
    access = Access(jwt_keys=put(tmp_path / "keys", issuer.public), api_keys=str(file))
    door = entrance(Listen(token="all"), access)

    def reason(path: str = "/", **headers: str) -> str:
        given = {"Host": "127.0.0.1"} | {n.replace("_", "-"): v for n, v in headers.items()}
        found = door.admit(given.get, path, "192.0.2.1")
        why = refused(found)
        return why.reason if why is not None else found.account  # type: ignore[union-attr]

    def page(token: str) -> str:
        word = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
        return f"lipsync.v1, {TOKEN_PROTOCOL}{word}"

    token = issuer.token()
    assert reason(Authorization=f"Bearer {token}") == "jwt:anna"
    assert reason(Sec_WebSocket_Protocol=page(token)) == "jwt:anna"
    assert reason(Authorization=f"bearer {key}") == "key:kiosk"
    assert reason(Sec_WebSocket_Protocol=page(key)) == "key:kiosk"
    assert reason(Authorization="Bearer all") == ""
    assert reason("/?token=all") == ""
    # What names somebody is never taken from an address.
    assert reason(f"/?token={token}") == "wrong_token"
    assert reason(f"/?token={key}") == "wrong_token"
    assert reason() == "unauthorized"
    assert reason(Authorization=f"Bearer {issuer.token(seconds=-60)}") == "expired"
    assert reason(Authorization=f"Bearer {token}x") == "wrong_token"


def test_tokens_that_have_run_out_are_no_guesses(tmp_path: Path) -> None:
    issuer = ISSUERS["HS256"]
    door = entrance(None, Access(jwt_keys=put(tmp_path / "keys", issuer.public)))
    late = header(issuer.token(seconds=-60))
    for _ in range(30):
        why = refused(door.admit(late.get, "/", "192.0.2.1"))
        assert why is not None
        assert (why.status, why.reason) == (401, "expired")
        assert "invalid_token" in why.headers["WWW-Authenticate"]
    assert refused(door.admit(header(issuer.token()).get, "/", "192.0.2.1")) is None


def test_who_may_change_avatars(tmp_path: Path) -> None:
    issuer = ISSUERS["HS256"]
    door = entrance(None, Access(jwt_keys=put(tmp_path / "keys", issuer.public)))

    def reason(peer: str, **claim: Any) -> str:
        given = header(issuer.token(lipsync=claim))
        why = refused(door.admit_change(given.get, "/", peer, peer))
        return "" if why is None else why.reason

    assert reason("192.0.2.1", admin=True) == ""
    assert reason("192.0.2.1") == "admin"
    assert reason("127.0.0.1") == "admin", "it says what it allows, wherever it is shown"
    nobody = refused(door.admit_change({"Host": "127.0.0.1"}.get, "/", "127.0.0.1", "127.0.0.1"))
    assert nobody is not None
    assert nobody.reason == "unauthorized"


def test_which_avatar_somebody_gets() -> None:
    def of(*avatars: str) -> Subject:
        return Subject(name="anna", by="jwt", allowed=Allowance(avatars=avatars))

    assert ANYONE.avatar("", "demo") == "demo"
    assert ANYONE.avatar("ann", "demo") == "ann"
    assert of("ann", "bob").avatar("", "demo") == "ann"
    assert of("ann", "demo").avatar("", "demo") == "demo"
    for subject, asked in ((of("ann"), "bob"), (of(), ""), (of(), "demo")):
        with pytest.raises(AvatarNotFoundError):
            subject.avatar(asked, "demo")
