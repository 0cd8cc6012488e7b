# SPDX-License-Identifier: Apache-2.0
"""A client's sound on its way into utterances, as many as may be spoken."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import trio
from msgspec import UNSET

from lipsync_fast.arrays import F32
from lipsync_fast.errors import ProtocolError, UnknownUtteranceError
from lipsync_fast.frontend.playout.playout import Playout
from lipsync_fast.frontend.playout.quiet import QuietTime
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.client_audio import ClientAudio
from lipsync_fast.frontend.session.shown_avatar import ShownAvatar
from lipsync_fast.timing import NS_PER_S, SAMPLE_RATE
from lipsync_fast.tokens.accounts import Visit
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast_client.protocol import ServerMessage, SessionOverloaded

QUIET, PAUSE_SAMPLES = 0.02, 12_800
"""A pause in the sound: no sample beyond the one for as many as the other (0.8 s), or none."""
LOOKS = 8
"""How often it is looked, in the time that an utterance may be quiet, whether it is."""


class UtteranceIntake:
    """Admits utterances of one session, and gives their sound to the playout.

    What was refused stays refused: its rest is no utterance. The next one begins behind its end,
    or, for a microphone that is always open, behind a pause in the sound. The session counts as
    one that speaks from an utterance's first sound until all is shown (``set_speaking``). An
    utterance that is neither ended nor goes on is ended here, after a quiet time.

    Args:
        visit: the connection's, which counts what is spoken.
        audio: makes samples of what the client sends.
        post: sends a message to the client.
        heard: called when sound of an utterance has come: its number, how many samples, and when.
        ended: called when an utterance was ended for its quiet.
    """

    def __init__(
        self,
        services: Services,
        playout: Playout,
        shown: ShownAvatar,
        audio: ClientAudio,
        *,
        visit: Visit,
        post: Callable[[ServerMessage], None],
        heard: Callable[[int, int, int], None],
        ended: Callable[[], None],
    ) -> None:
        self._admission, self._statistics = services.admission, services.statistics
        self._utterances = services.utterances
        self._playout, self._shown, self._audio, self._post = playout, shown, audio, post
        self._visit, self._heard, self._ended = visit, heard, ended
        self._quiet_ns = int(services.config.live.quiet_s * NS_PER_S)
        self._quiet = QuietTime(self._quiet_ns)
        self._alarm = services.timer.alarm(self._look_for_quiet)
        self._speaking = False
        self._encoding = 0.0
        """What was said of it when it began to speak."""
        self._refused_ns = 0
        """Sound is dropped, until then at least: too many others speak. 0 while it is not."""
        self._quiet_samples = self._last_sound_ns = 0
        """Since sound was refused: of the pause that goes on, and when the last piece came."""

    def push(self, data: bytes) -> bool:
        """A piece of the client's sound; begins an utterance where none is open.

        Returns:
            Whether it will be heard; else too many speak, and the client was told.
        """
        now_ns = time.monotonic_ns()
        pcm = self._audio.push(data)
        begins = not self._playout.open
        if begins and not self._admit(pcm, now_ns):
            return False
        self.set_speaking(True)
        number = self._playout.push_audio(pcm, now_ns)
        self._heard(number, len(pcm), now_ns)
        self._audio.keep(number)
        if self._visit.spend(len(pcm) / SAMPLE_RATE) is not None:
            self.end_utterance(quiet=True)  # what comes then is refused, as any utterance
            self._ended()
            return False
        if self._alarm.due_ns is None:
            self._alarm.set(now_ns + self._quiet_ns // LOOKS)
        return True

    def _admit(self, pcm: F32, now_ns: int) -> bool:
        """Whether an utterance may begin; where not, the client gets a message."""
        if self._refused_ns:
            loud = len(pcm) > 0 and float(np.abs(pcm).max()) > QUIET
            paused = (now_ns - self._last_sound_ns) * SAMPLE_RATE // NS_PER_S
            self._quiet_samples = max(paused, 0 if loud else self._quiet_samples + len(pcm))
            self._last_sound_ns = now_ns
            if now_ns < self._refused_ns or self._quiet_samples < PAUSE_SAMPLES:
                return False
        refusal = self._visit.used_up() if self._speaking else self._refusal()
        if refusal is None:
            self._refused_ns = 0
            return True
        self._refuse(refusal, now_ns)
        return False

    def _refusal(self) -> Refusal | None:
        """Why the session may not begin to speak."""
        own = self._visit.speech_refusal()
        if own is not None:
            return own
        full = self._admission.speech_refusal(self._visit.address, self._shown.encoding)
        return None if full is None else Refusal(503, "overloaded", full)

    def _refuse(self, refusal: Refusal, now_ns: int) -> None:
        """Tell the client, and drop its sound for a while."""
        self._refused_ns = now_ns + int(refusal.retry_s * NS_PER_S)
        self._quiet_samples, self._last_sound_ns = 0, now_ns
        self._audio.reset()
        over = refusal.reason == "over_quota"
        self._statistics.count_refused("over_quota" if over else "utterance")
        self._statistics.count_error("over_quota" if over else "overloaded")
        self._post(
            SessionOverloaded(
                retry_after_ms=int(refusal.retry_s * 1000),
                message=refusal.message,
                code="over_quota" if over else UNSET,
            )
        )

    def _look_for_quiet(self) -> None:
        """End the utterance that is open, if it has been quiet for too long."""
        now_ns = time.monotonic_ns()
        if self._quiet.is_over(self._playout, now_ns):
            self.end_utterance(quiet=True)
            self._ended()
        elif self._playout.open:
            self._alarm.set(now_ns + self._quiet_ns // LOOKS)

    def end_utterance(self, quiet: bool = False) -> None:
        """All of the utterance has come, or of the sound that was refused.

        Args:
            quiet: nobody has said so, but no more sound comes.
        """
        now_ns = time.monotonic_ns()
        if self._playout.open:
            last = self._audio.finish()
            if len(last):
                self._heard(self._playout.push_audio(last, now_ns), len(last), now_ns)
            self._playout.end_utterance(now_ns, quiet)
        else:
            self._audio.reset()
        self._refused_ns = 0
        self.set_speaking(self._playout.speaking)

    async def say(self, name: str) -> None:
        """Say what was pre-rendered, as if the client had sent all of its sound.

        Raises:
            ProtocolError: an utterance is open.
            UnknownUtteranceError: nothing was pre-rendered under that name.
        """
        if self._playout.open:
            raise ProtocolError("utterance.say: an utterance is open; send utterance.end first")
        pcm = self._utterances.named(self._shown.package.manifest.name, name)
        if pcm is None:
            raise UnknownUtteranceError(
                f"nothing was pre-rendered for avatar {self._shown.name[:64]!r} as {name[:64]!r}"
            )
        self._refused_ns = 0
        self._audio.reset()
        if not self._admit(pcm, time.monotonic_ns()):
            self._refused_ns = 0  # none of its sound is still to come
            return
        echo = pcm
        if self._audio.resamples_echo:  # takes some milliseconds
            echo = await trio.to_thread.run_sync(self._audio.for_echo, pcm)
        self.set_speaking(True)
        self._utterances.counts["named"] += 1
        now_ns = time.monotonic_ns()
        number = self._playout.speak(pcm, now_ns)
        self._heard(number, len(pcm), now_ns)
        self._audio.keep_whole(number, echo)
        self._visit.spend(len(pcm) / SAMPLE_RATE)

    def interrupt(self) -> None:
        """Forget the sound that has come, and its echo."""
        self._audio.reset()
        self._audio.forget_echoes()
        self._refused_ns = 0
        self.set_speaking(False)

    def set_speaking(self, speaking: bool) -> None:
        """Count the session among those that speak, or no more."""
        if speaking != self._speaking:
            self._speaking = speaking
            if speaking:
                self._encoding = self._shown.encoding
                self._admission.begin_speech(self._visit.address, self._encoding)
                self._visit.begin_speech()
            else:
                self._admission.end_speech(self._visit.address, self._encoding)
                self._visit.end_speech()

    def close(self) -> None:
        """The session has ended: it speaks no more."""
        self._alarm.close()
        self.set_speaking(False)
