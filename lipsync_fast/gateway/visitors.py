# SPDX-License-Identifier: Apache-2.0
"""Who asks the gateway itself for something, without a front that would know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lipsync_fast.audit import Audit
from lipsync_fast.errors import PeerError
from lipsync_fast.gateway.fronts import Client
from lipsync_fast.ipc.children import GatewaySpec
from lipsync_fast.origins import client_address
from lipsync_fast.tokens.accounts import Accounts
from lipsync_fast.tokens.guesses import Guesses
from lipsync_fast.tokens.identities import Identities, Shown, bearer
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import ANYONE, Subject

NO_ADMIN = Refusal(
    401,
    "unauthorized",
    "send Authorization: Bearer and the token of listen.admin_token, or one of an admin",
)
NOT_ADMIN = Refusal(403, "admin", "only admins may do that: listen.admin_token, or their tokens")


class Visitors:
    """Knows the tokens of those who ask. One loop."""

    def __init__(self, spec: GatewaySpec) -> None:
        self._listen = spec.config.listen
        self._identities, self._guesses = Identities(spec.config), Guesses()
        self._audit = Audit(spec.config.log.audit, spec.name)
        self.accounts = Accounts(spec.config.limits)

    def who(self, client: Client, counts: bool = True) -> Subject:
        """Whose request it is.

        Args:
            counts: as a connect; not where a front counts it.

        Raises:
            PeerError: nobody who may.
        """
        return self._judged(client, self._identities.asked, self._identities.judge, counts)

    def admin(self, client: Client) -> Subject:
        """The same, where only admins may ask."""

        def decide(shown: Shown) -> Subject | Refusal:
            if self._identities.is_admin_token(shown):
                return ANYONE
            if not shown:
                return NO_ADMIN
            if not self._identities.asked:
                return Refusal(401, "wrong_token", NO_ADMIN.message)
            found = self._identities.judge(shown)
            if isinstance(found, Subject):
                if found.allowed.admin:
                    return found
                return NOT_ADMIN if found.name else NO_ADMIN
            return found

        return self._judged(client, True, decide, counts=True)

    def note(self, event: str, client: Client, who: Subject, **more: Any) -> None:
        """Write down what somebody has asked for."""
        about = {"subject": who.name, "by": who.by, "key": who.key}
        self._audit.write(event, **about, address=self._address(client), **more)

    def close(self) -> None:
        """Write down what is left of it."""
        self._audit.close()

    def _judged(
        self,
        client: Client,
        asked: bool,
        decide: Callable[[Shown], Subject | Refusal],
        counts: bool,
    ) -> Subject:
        shown = Shown(bearer(client.authorization or None))
        address = self._address(client)
        found = self._guesses.judge(address, asked and bool(shown), lambda: decide(shown))
        if counts and isinstance(found, Subject):
            found = self.accounts.connect(found, address) or found
        if isinstance(found, Refusal):
            self._audit.refused(found.reason, found.status, address)
            raise PeerError(found.message, found.status, found.reason, found.retry_s)
        return found

    def _address(self, client: Client) -> str:
        return client_address(self._listen, client.address, client.forwarded or None)
