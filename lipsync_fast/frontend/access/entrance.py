# SPDX-License-Identifier: Apache-2.0
"""Who comes in: each request's or upgrade's head is resolved to a subject here, once.

What stands behind asks nobody again: a connection has its subject as long as it lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lipsync_fast.config import Listen
from lipsync_fast.frontend.access.admin import NO_ADMIN, operators_refusal
from lipsync_fast.frontend.access.clients import Header, shown
from lipsync_fast.origins import host_allowed, origin_allowed
from lipsync_fast.tokens.accounts import Accounts
from lipsync_fast.tokens.guesses import Guesses
from lipsync_fast.tokens.identities import Identities, Shown
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import ANYONE, Subject

NOT_ITS_NAME = Refusal(403, "host", "the server is not known by this name; see listen.origins")
FOREIGN = Refusal(403, "origin", "pages of this origin may not connect; see listen.origins")


class Entrance:
    """Decides for one front. One thread."""

    def __init__(
        self, listen: Listen, identities: Identities, guesses: Guesses, accounts: Accounts
    ) -> None:
        self._listen, self._identities, self._guesses = listen, identities, guesses
        self._accounts = accounts

    def admit(
        self, header: Header, path: str, address: str, upgrade: bool = True
    ) -> Subject | Refusal:
        """Whose request it is, or why it may not go on.

        Args:
            header: a header's value by its name; None where there is none.
            path: of the request, with its query.
            address: the client's.
            upgrade: to a WebSocket.
        """
        if not host_allowed(self._listen, header("Host")):
            return NOT_ITS_NAME
        if not origin_allowed(self._listen, header("Origin"), header("Host")):
            return FOREIGN
        given = shown(header, path, upgrade)
        found = self._judged(address, given, lambda: self._identities.judge(given))
        return self._counted(found, address)

    def is_revoked(self, subject: Subject) -> bool:
        """Whether the key by which somebody came in has been taken away since."""
        return self._identities.is_revoked(subject)

    def admit_change(self, header: Header, path: str, address: str, peer: str) -> Subject | Refusal:
        """Who wants to change what is served, or why that may not be.

        Args:
            peer: address at the other end of the TCP connection.
        """
        if not host_allowed(self._listen, header("Host")):
            return NOT_ITS_NAME
        given = shown(header, path, upgrade=False)

        def decide() -> Subject | Refusal:
            if self._identities.is_admin_token(given):
                return ANYONE
            found = self._identities.judge(given)
            if isinstance(found, Subject) and found.allowed.admin:
                return found
            refusal = operators_refusal(header, peer)
            if refusal is not None:
                return self._not_the_operator(refusal, given, found)
            # A token that names somebody says what that one may: this is not among it.
            return NO_ADMIN if isinstance(found, Subject) and found.name else found

        return self._counted(self._judged(address, given, decide), address)

    def _counted(self, found: Subject | Refusal, address: str) -> Subject | Refusal:
        if isinstance(found, Refusal):
            return found
        return self._accounts.connect(found, address) or found

    def _judged(
        self, address: str, given: Shown, decide: Callable[[], Subject | Refusal]
    ) -> Subject | Refusal:
        counts = self._identities.guessable and bool(given)
        return self._guesses.judge(address, counts, decide)

    def _not_the_operator(
        self, refusal: Refusal, given: Shown, found: Subject | Refusal
    ) -> Refusal:
        """What is told to who is not on this machine; whoever shows a token in vain has guessed,
        but for the one that lets sessions in."""
        if isinstance(found, Refusal):
            if found.reason not in ("unauthorized", "wrong_token"):
                return found
            guessed = found.reason == "wrong_token"
        else:
            guessed = bool(given) and not self._identities.asked
        return replace(refusal, reason="wrong_token") if guessed else refusal
