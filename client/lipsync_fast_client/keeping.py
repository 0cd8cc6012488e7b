# SPDX-License-Identifier: Apache-2.0
"""A session for as long as an agent lives: whatever ends it, another one is begun (asyncio)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import NoReturn

from lipsync_fast_client.connecting import Connecting
from lipsync_fast_client.errors import LipsyncError
from lipsync_fast_client.events import Event
from lipsync_fast_client.outage import Outage
from lipsync_fast_client.session import Session


async def keep_session(
    connecting: Callable[[], Connecting],
    found: Callable[[Session], None],
    take: Callable[[Event], Awaitable[None]],
    lost: Callable[[str], Awaitable[None]],
) -> NoReturn:
    """Have a session, until cancelled.

    Args:
        connecting: a new one, not begun yet.
        found: told of each that has begun.
        take: given its events.
        lost: told why there is none any more, or none yet; what it does comes before the next try.
            Cancelled, nobody is told.
    """
    outage = Outage(math.inf)
    while True:
        try:
            async with connecting() as session:
                outage = Outage(math.inf)
                found(session)
                async for event in session:
                    await take(event)
            reason = "the server has ended the session"
        except (LipsyncError, ValueError) as error:
            reason = str(error)
            outage.retry_after_s = getattr(error, "retry_after_s", None)
        await lost(reason)
        await asyncio.sleep(outage.wait_s())
        outage.attempt()
