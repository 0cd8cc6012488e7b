# SPDX-License-Identifier: Apache-2.0
"""What a client has said that has not been shown yet, and what of what comes is void."""

from __future__ import annotations

import time
from collections.abc import Callable

from lipsync_fast_client.events import AudioFrame, Event, VideoFrame
from lipsync_fast_client.protocol import (
    ErrorMessage,
    SessionInterrupted,
    SessionOverloaded,
    UtteranceEnded,
    UtteranceStarted,
)

UNSAID = "unknown_utterance", "speech_failed"
"""Errors that come in place of an utterance."""
PAUSE_S = 0.8
"""Sound that comes after such a pause is a new utterance where the one before was lost: a client
that never ends its utterances is heard again, too."""


class Pending:
    """The client's side of the conversation.

    After ``interrupted``, what still comes of old utterances is void until the server confirms.
    After ``lost``, sound is dropped: while there is no server, and the rest of an utterance whose
    beginning nobody has heard.

    Attributes:
        cut: changes with every interruption and loss: who is in the middle of sending leaves off.
        unfinished: utterances that were begun here, and have not been shown whole.
        missed: those that were begun while there was no server.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.cut = self.unfinished = self.missed = 0
        self._void = 0  # interruptions that the server has not confirmed
        self._open = False
        self._away = False
        self._headless = False  # the open utterance's beginning was lost
        self._last = clock()

    # ------------------------------------------------------------ what the client does
    def sound(self) -> bool:
        """Sound is to be sent; whether it is of use to anybody."""
        now = self._clock()
        paused, self._last = now - self._last > PAUSE_S, now
        if self._headless and paused:
            self._headless = self._open = False
        if self._away and not self._headless:
            self._headless = True
            self.missed += 1
        if self._headless:
            return False
        if not self._open:
            self._open = True
            self.unfinished += 1
        return True

    def ended(self) -> bool:
        """The utterance ends; whether the server is to be told."""
        told = not (self._away or self._headless)
        self._open = self._headless = False
        return told

    def said(self) -> bool:
        """A pre-rendered utterance or a text is to be said; whether the server is to be told."""
        if self._away:
            self.missed += 1
            return False
        self.unfinished += 1
        return True

    def interrupted(self) -> bool:
        """All that was said is void; whether the server is to be told."""
        self._open = self._headless = False
        self.unfinished = 0
        self.cut += 1
        if not self._away:
            self._void += 1
        return not self._away

    def not_interrupted(self) -> None:
        """The server was not told after all."""
        self._void = max(0, self._void - 1)

    # ------------------------------------------------------------ what comes
    def lost(self) -> int:
        """There is no server any more.

        Returns:
            How many utterances it has taken with it.
        """
        taken, self.unfinished, self.missed = self.unfinished, 0, 0
        self._headless, self._open = self._open, False
        self._away, self._void = True, 0
        self.cut += 1
        return taken

    def back(self) -> int:
        """There is a server again; it knows nothing of what was said.

        Returns:
            How many utterances were begun meanwhile, and heard by nobody.
        """
        self._away = False
        return self.missed

    def sees(self, event: Event) -> bool:
        """Note what came; whether it is for the user, or void."""
        if isinstance(event, SessionInterrupted):
            self._void = max(0, self._void - 1)
            return True
        if isinstance(event, (VideoFrame, AudioFrame)):
            return not (self._void and event.utterance)
        if isinstance(event, (UtteranceStarted, UtteranceEnded, SessionOverloaded)):
            if self._void:
                return False
            if isinstance(event, UtteranceStarted):
                self.unfinished = max(1, self.unfinished)
                return True
            self.unfinished = max(0, self.unfinished - 1)
            if isinstance(event, UtteranceEnded) and not self.unfinished:
                self._open = False  # the server has ended it for lack of sound
        elif isinstance(event, ErrorMessage) and event.code in UNSAID:
            self.unfinished = max(0, self.unfinished - 1)
        return True
