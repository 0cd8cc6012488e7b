# SPDX-License-Identifier: Apache-2.0
"""From what is shown to who it is: the shared token, a JWT, an API key."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from lipsync_fast.config import ServeConfig
from lipsync_fast.errors import ConfigError, TokenError
from lipsync_fast.tokens import api_keys, jwts
from lipsync_fast.tokens.api_keys import ApiKeys
from lipsync_fast.tokens.jwts import JwtKeys
from lipsync_fast.tokens.refusals import NO_TOKEN, Refusal
from lipsync_fast.tokens.subject import ANYONE, Subject
from lipsync_fast.tokens.tickets import Tickets
from lipsync_fast.tokens.watched import Watched

MOST_BYTES = 8192
"""Of a token."""
_ORDER = ("used_ticket", "expired", "wrong_audience", "wrong_issuer", "wrong_token")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows.

    Attributes:
        tokens: in a header, or among the subprotocols.
        linked: in its address, where the shared token alone counts: addresses end up in logs.
        tickets: that are to be used up now, from either place.
    """

    tokens: Sequence[bytes] = ()
    linked: Sequence[bytes] = ()
    tickets: Sequence[bytes] = ()

    def __bool__(self) -> bool:
        return bool(self.tokens or self.linked or self.tickets)


def bearer(authorization: str | None) -> list[bytes]:
    """The token of an Authorization header, in each way that its characters may be meant."""
    if authorization is None or authorization[:7].lower() != "bearer ":
        return []
    word = authorization[7:].strip()
    tokens = [word.encode()]
    with contextlib.suppress(UnicodeEncodeError):  # bytes of UTF-8, as they are on the wire
        other = word.encode("latin-1")
        tokens += [other] if other != tokens[0] else []
    return tokens


class Identities:
    """Knows all tokens of a server. One thread.

    Args:
        config: see ``config.Listen`` and ``config.Access``. Files that cannot be read now are
            tried again; until then nobody has their keys.
        tickets: of a front; nobody has one where None.
    """

    def __init__(self, config: ServeConfig, tickets: Tickets | None = None) -> None:
        self._tickets = tickets
        listen, access = config.listen, config.access
        self._token, self._admin_token = listen.token.encode(), listen.admin_token.encode()
        self._jwts = self._keys = None
        if access.jwt_keys:
            self._jwts = Watched(access.jwt_keys, lambda path: JwtKeys.read(path, access))
        if access.api_keys:
            self._keys = Watched(access.api_keys, ApiKeys.read)

    @property
    def asked(self) -> bool:
        """Whether a token is asked for."""
        return bool(self._token) or self._jwts is not None or self._keys is not None

    @property
    def guessable(self) -> bool:
        """Whether there is any token, the admin's too, that could be guessed."""
        return self.asked or bool(self._admin_token)

    def is_admin_token(self, shown: Shown) -> bool:
        """Whether ``listen.admin_token`` is shown, not in an address."""
        return bool(self._admin_token) and any(
            hmac.compare_digest(word, self._admin_token) for word in shown.tokens
        )

    def of(self, shown: Shown) -> Subject | None:
        """Who shows that; None where a token is asked for and none is shown.

        Raises:
            TokenError: none of what is shown is to be believed.
        """
        if not self.asked:
            return ANYONE
        if not shown:
            return None
        if self._token and any(
            hmac.compare_digest(word, self._token) for word in (*shown.tokens, *shown.linked)
        ):
            return ANYONE
        errors = []
        for word in shown.tokens:
            try:
                return self._named(word)
            except TokenError as error:
                errors.append(error)
        if self._tickets is not None and shown.tickets:
            try:
                return self._tickets.redeem(shown.tickets[0])
            except TokenError as error:
                errors.append(error)
        raise min(errors, key=lambda e: _ORDER.index(e.reason), default=_wrong())

    def judge(self, shown: Shown) -> Subject | Refusal:
        """Who shows that, or why that one may not go on."""
        try:
            return self.of(shown) or NO_TOKEN
        except TokenError as error:
            return Refusal(401, error.reason, str(error))

    def is_revoked(self, subject: Subject) -> bool:
        """Whether somebody's API key, or the key that has signed the JWT, has been taken away since
        that was shown."""
        files: dict[str, Watched[ApiKeys] | Watched[JwtKeys] | None]
        files = {"key": self._keys, "jwt": self._jwts}
        file = files.get(subject.by)
        known = file.get() if file is not None else None
        return known is not None and not known.believes(subject)

    def _named(self, word: bytes) -> Subject:
        if len(word) > MOST_BYTES or not word.isascii():
            raise _wrong()
        text = word.decode("ascii")
        found: ApiKeys | JwtKeys | None = None
        if self._keys is not None and text.startswith(api_keys.PREFIX):
            found = self._keys.get()
        elif self._jwts is not None and text.count(".") == 2:
            found = self._jwts.get()
        if found is None:
            raise _wrong()
        return found.subject(text)


def _wrong() -> TokenError:
    return TokenError("wrong_token", "the token is not one of this server's")


def check(config: ServeConfig) -> None:
    """See that all that is configured can be used.

    Raises:
        ConfigError: it cannot.
    """
    access = config.access
    if access.jwt_keys:
        JwtKeys.read(access.jwt_keys, access)
    elif access.jwt_audience or access.jwt_issuer:
        named = "jwt_audience" if access.jwt_audience else "jwt_issuer"
        raise ConfigError(f"access.{named} is of no use without {jwts.SETTING}")
    if access.api_keys:
        ApiKeys.read(access.api_keys)
