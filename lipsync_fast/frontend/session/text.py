# SPDX-License-Identifier: Apache-2.0
"""Texts that a session says, one behind the other, each as an utterance of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from lipsync_fast.errors import OverloadedError, ProtocolError, SpeechError
from lipsync_fast.frontend.playout.playout import Playout
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.driver import PlayoutDriver
from lipsync_fast.frontend.session.intake import UtteranceIntake
from lipsync_fast.frontend.text_to_speech import NOT_SET_UP
from lipsync_fast_client.protocol import AudioFormat, ErrorMessage, ServerMessage, UtteranceSay

MOST_WAITING = 16
"""Texts that may wait to be spoken."""


class TextSpeaker:
    """Has texts spoken, and gives their sound to the session as if its client had sent it.

    While one is spoken, or waits, the client's own sound is left out (``busy``).

    Args:
        playout, intake, driver: of the session.
        form: of the client's sound.
        post: sends a message to the client.
    """

    def __init__(
        self,
        services: Services,
        playout: Playout,
        intake: UtteranceIntake,
        driver: PlayoutDriver,
        form: AudioFormat,
        post: Callable[[ServerMessage], None],
    ) -> None:
        self._speech, self._statistics = services.text_to_speech, services.statistics
        self._most_s = services.config.limits.queued_s
        self._playout, self._intake, self._driver = playout, intake, driver
        self._form, self._post = form, post
        self._waiting: deque[tuple[str, str]] = deque()
        self._more = trio.Event()
        self._scope: trio.CancelScope | None = None
        """While a text is being spoken."""

    @property
    def busy(self) -> bool:
        """Whether a text is being spoken, or is to be."""
        return bool(self._waiting) or self._scope is not None

    async def say(self, wanted: UtteranceSay) -> None:
        """Say what was pre-rendered now, or a text behind those that wait.

        Raises:
            ProtocolError: an utterance is open, or texts are being said.
            UnknownUtteranceError: nothing was pre-rendered under that name.
            SpeechError: there is no speech synthesis.
            OverloadedError: too many texts wait.
        """
        if isinstance(wanted.name, str):
            if self.busy:
                raise ProtocolError("utterance.say: texts are being said; interrupt, or wait")
            await self._intake.say(wanted.name)
        elif isinstance(wanted.text, str):
            if not self._speech.enabled:
                raise SpeechError(NOT_SET_UP)
            if self._playout.open and not self.busy:
                raise ProtocolError("utterance.say: an utterance is open; send utterance.end first")
            if len(self._waiting) >= MOST_WAITING:
                raise OverloadedError(f"utterance.say: {MOST_WAITING} texts wait already")
            self._waiting.append((wanted.text, wanted.voice))
            self._more.set()

    def interrupt(self) -> None:
        """No more of what is being spoken, and nothing of what waits."""
        self._waiting.clear()
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> None:
        """Speak, until cancelled."""
        while True:
            while not self._waiting:
                self._more = trio.Event()
                await self._more.wait()
            with trio.CancelScope() as self._scope:
                await self._speak(*self._waiting.popleft(), self._scope)
            self._scope = None

    async def _speak(self, text: str, voice: str, scope: trio.CancelScope) -> None:
        begun, result = False, "cut"
        try:
            async with self._speech.spoken(text, voice, self._form) as pieces:
                async for piece in pieces:
                    # A piece may have been on its way when it became void.
                    if scope.cancel_called or not self._intake.push(piece):
                        return
                    begun = True
                    self._driver.send_jobs()
                    self._driver.tick_if_due()
                    while self._playout.queued_s > self._most_s:
                        await self._driver.progress.wait()
            result = "said"
        except SpeechError as error:
            result = "failed"
            self._statistics.count_error(error.code)
            self._post(ErrorMessage(code=error.code, message=str(error), fatal=False))
        finally:
            self._statistics.count_text(result, len(text))
        if begun:
            self._intake.end_utterance()
            self._driver.tick()
