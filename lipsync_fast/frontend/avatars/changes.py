# SPDX-License-Identifier: Apache-2.0
"""Changes of what the whole server serves: asked of the supervisor, and waited for here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Literal

import trio

from lipsync_fast.errors import EngineLostError, OverloadedError
from lipsync_fast.ipc.control import AnyMessage, AvatarChanged, ChangeAvatar
from lipsync_fast.signals import Changes

CHANGE_S = 75.0
"""How long the supervisor may take to load or unload an avatar; it gives up before."""
MOST_CHANGES = 50
"""Changes that are waited for in this front, at most."""


class AvatarChanges:
    """The changes that clients of this front have asked for.

    Args:
        send: to the supervisor.
    """

    def __init__(self, send: Callable[[AnyMessage], None]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._waiting: dict[str, AvatarChanged | None] = {}
        """By request: its answer, once it is there."""
        self._answered = Changes()

    async def change(
        self, action: Literal["load", "unload"], name: str, path: str = ""
    ) -> AvatarChanged:
        """Have an avatar loaded, replaced or unloaded, for the whole server.

        Args:
            path: of its package, in one of the folders of avatars; looked for where empty.

        Raises:
            OverloadedError: too many such changes wait already.
            EngineLostError: the supervisor has not answered.
        """
        if len(self._waiting) >= MOST_CHANGES:
            raise OverloadedError("too many changes of avatars wait; try again later")
        request = f"{os.getpid()}-{next(self._numbers)}"
        self._waiting[request] = None
        self._send(ChangeAvatar(request=request, action=action, name=name, path=path))
        try:
            with trio.move_on_after(CHANGE_S):
                while (answer := self._waiting[request]) is None:
                    await self._answered.wait()
                return answer
        finally:
            del self._waiting[request]
        raise EngineLostError(f"the server has not answered within {CHANGE_S:g} s")

    def on_changed(self, answer: AvatarChanged) -> None:
        """The supervisor has answered; the first answer to a request counts."""
        if answer.request in self._waiting and self._waiting[answer.request] is None:
            self._waiting[answer.request] = answer
            self._answered.notify()
