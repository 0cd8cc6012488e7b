# SPDX-License-Identifier: Apache-2.0
"""What a front decides of a request's head, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable

from lipsync_fast.config import Access, Limits, Listen, ServeConfig
from lipsync_fast.frontend.access.entrance import Entrance
from lipsync_fast.tokens.accounts import Accounts
from lipsync_fast.tokens.guesses import Guesses
from lipsync_fast.tokens.identities import Identities
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import Subject


def entrance(
    listen: Listen | None = None,
    access: Access | None = None,
    clock: Callable[[], float] = time.monotonic,
    limits: Limits | None = None,
) -> Entrance:
    """The entrance of a front with that configuration."""
    config = ServeConfig(
        listen=listen or Listen(), access=access or Access(), limits=limits or Limits()
    )
    return Entrance(config.listen, Identities(config), Guesses(clock), Accounts(config.limits))


def refused(found: Subject | Refusal) -> Refusal | None:
    """Why; None where it was let in."""
    return found if isinstance(found, Refusal) else None
