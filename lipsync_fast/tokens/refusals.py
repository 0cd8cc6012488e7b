# SPDX-License-Identifier: Apache-2.0
"""That somebody may not, in a form that every protocol can say."""

from __future__ import annotations

import math
from dataclasses import dataclass

RETRY_S = 2.0
"""How long a client that was refused is asked to wait, where nothing else is known."""
CODE = "X-Lipsync-Fast-Code"
"""The header that carries a refusal's word."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused: the HTTP status, a word to count it by, and a sentence.

    Attributes:
        reason: does not change; programs may act on it.
        retry_s: when to try again, for statuses that say so.
    """

    status: int
    reason: str
    message: str
    retry_s: float = RETRY_S

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says of it, in every protocol."""
        headers = {CODE: self.reason}
        if self.status in (429, 503):
            headers["Retry-After"] = retry_after(self.retry_s)
        elif self.status == 401:
            shown = self.reason not in ("unauthorized",)
            headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if shown else "Bearer"
        return headers


NO_TOKEN = Refusal(401, "unauthorized", "a token is needed: send Authorization: Bearer TOKEN")


def retry_after(seconds: float) -> str:
    """The value of a Retry-After header."""
    return str(max(1, math.ceil(seconds)))
