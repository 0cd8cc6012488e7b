# SPDX-License-Identifier: Apache-2.0
"""A session with ``pace: burst``: every frame as soon as it is made, in order, with no clock.

Frame k of all that was said is picture k: the same pictures that ``render`` makes of the sound.
At most ``IN_FLIGHT`` frames are asked for and not yet sent: the caller calls ``tick`` when it can
send, so a client that reads slowly slows its own session down and nothing else.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from lipsync_fast.arrays import F32
from lipsync_fast.frontend.playout.playout import (
    Appearance,
    Ended,
    Event,
    Flag,
    Picture,
    Speaker,
    Started,
)
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.frontend.playout.utterance_lookup import (
    FIRST_FRAMES,
    UtteranceLookup,
    note_answer,
)
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Job, Status, StoreMode
from lipsync_fast.timing import SAMPLE_RATE, SLOT_NS

IN_FLIGHT = 24
PATIENCE_NS = 30_000_000_000
"""A frame that no engine has made within this is given up."""


@dataclass(slots=True)
class _Spoken:
    number: int
    sound: Utterance
    next: int = 0
    shown: int = 0
    dropped: int = 0
    store: StoreMode = StoreMode.OFF
    missed: int = 0
    """Frames in a row that were looked for in vain."""


@dataclass(slots=True)
class _Asked:
    number: int
    avatar_frame: int
    spoken: _Spoken
    frame: int
    asked_ns: int
    job: int
    done: bool = False
    jpeg: bytes | None = None
    box: Rect | None = None


class BurstPlayout(Speaker[_Spoken]):
    """One session with ``pace: burst``; see ``playout.Playout``.

    Args:
        number: of the session in its front.
        appearance: what it begins with.
        new_stream: gives each utterance a number of its own in this front.
        lookup: what was said before; None where nothing is kept.
    """

    def __init__(
        self,
        *,
        number: int,
        appearance: Appearance,
        new_stream: Callable[[], int],
        lookup: UtteranceLookup | None = None,
    ) -> None:
        self._number, self._new_stream, self._lookup = number, new_stream, lookup
        self._appearance = appearance
        self.jobs: deque[tuple[Job, F32]] = deque()
        self.epoch = self.late = 0
        self.margin_ns = 0
        self._utterances: deque[_Spoken] = deque()
        self._asked: deque[_Asked] = deque()
        self._by_job: dict[int, _Asked] = {}
        self._numbers, self._jobs = itertools.count(1), itertools.count(1)
        self._pictures = 0
        self._first = 0
        """Number of the avatar's first picture."""
        self._change: Appearance | None = None

    @property
    def avatar(self) -> str:
        """The key of the avatar's version that is shown."""
        return self._appearance.avatar

    # ------------------------------------------------------------ what comes in
    def push_audio(self, pcm: F32, now_ns: int) -> int:
        """Sound, 16 kHz mono; begins an utterance where none is open. Gives its number."""
        if not self.open:
            sound = Utterance(self._new_stream(), self._appearance.manifest.audio)
            self._utterances.append(_Spoken(next(self._numbers), sound))
        spoken = self._utterances[-1]
        if len(pcm):
            spoken.sound.push(pcm)
            self._plan(now_ns)
        return spoken.number

    def end_utterance(self, now_ns: int) -> None:
        """All of the utterance has come; without an open one nothing happens."""
        if self.open:
            spoken = self._utterances[-1]
            spoken.sound.end()
            if spoken.sound.samples == 0:
                self._utterances.pop()
            self._plan(now_ns)

    def interrupt(self, now_ns: int) -> int:
        """Drop all that is to be said; the number of the last picture that was sent, or -1."""
        self.epoch += 1
        self._pictures -= len(self._asked)
        self._utterances.clear()
        self._asked.clear()
        self._by_job.clear()
        self.jobs.clear()
        return self._pictures - 1

    def change(self, appearance: Appearance) -> None:
        """Another avatar or look: from the next moment on in which nothing is spoken."""
        self._change = appearance
        self._apply_change()

    def _apply_change(self) -> None:
        if self._change is not None and not self._utterances:
            self._appearance, self._change = self._change, None
            self._first = self._pictures

    def answered(self, answer: Answer, jpeg: bytes) -> bool:
        """What an engine made of a job; what is void is ignored. True where a tick is due."""
        asked = self._by_job.pop(answer.number, None) if answer.epoch == self.epoch else None
        if asked is not None:
            asked.done = True
            if answer.status == Status.MADE:
                asked.jpeg, asked.box = jpeg, answer.box
                note_answer(asked.spoken, answer.kept)
        return asked is not None

    def lost(self, job: Job, now_ns: int) -> Job | None:
        """A job's engine is gone: the job again, or None when it is void."""
        if job.epoch != self.epoch or job.number not in self._by_job:
            return None
        return msgspec.structs.replace(job, deadline_ns=now_ns + PATIENCE_NS)

    # ------------------------------------------------------------ what goes out
    @property
    def wake_ns(self) -> int | None:
        """When to give up the oldest frame."""
        return self._asked[0].asked_ns + 2 * PATIENCE_NS if self._asked else None

    @property
    def latency_ms(self) -> float:
        """From a sound to the earliest moment at which its picture can be made."""
        return self._appearance.manifest.audio.lookahead_samples * 1000 / SAMPLE_RATE

    def tick(self, now_ns: int) -> list[Event]:
        """What is made by now, in order; asks for more."""
        events: list[Event] = []
        while self._asked:
            asked = self._asked[0]
            if not asked.done and now_ns < asked.asked_ns + 2 * PATIENCE_NS:
                break
            self._asked.popleft()
            events += self._show(asked)
        self._plan(now_ns)
        return events

    def _show(self, asked: _Asked) -> list[Event]:
        spoken, events = asked.spoken, list[Event]()
        spoken.shown += 1
        flags = Flag.NONE
        if asked.frame == 0:
            flags |= Flag.FIRST
            events.append(Started(spoken.number))
        last = spoken.sound.ended and asked.frame == (spoken.sound.frames or 0) - 1
        if last:
            flags |= Flag.LAST
        if asked.jpeg is None:
            spoken.dropped += 1
            self.late += 1
        else:
            events.append(
                Picture(
                    asked.number,
                    asked.number * SLOT_NS,
                    asked.avatar_frame,
                    flags,
                    spoken.number,
                    asked.jpeg,
                    asked.box,
                    asked.frame,
                    asked.asked_ns,
                    asked.job,
                )
            )
        if last:
            events.append(Ended(spoken.number, spoken.sound.frames or 0, spoken.dropped))
            self._utterances.remove(spoken)
            self._apply_change()
        return events

    def _plan(self, now_ns: int) -> None:
        """Ask for frames that are decided, as many as may be in flight."""
        for spoken in self._utterances:
            sound = spoken.sound
            while spoken.next < sound.decided and len(self._asked) < IN_FLIGHT:
                self._ask(spoken, now_ns)
            if not sound.ended or spoken.next < sound.decided:
                return

    def _ask(self, spoken: _Spoken, now_ns: int) -> None:
        number, self._pictures = self._pictures, self._pictures + 1
        appearance, position = self._appearance, number - self._first
        avatar_frame = appearance.manifest.avatar_frame(position)
        if spoken.next == 0 and self._lookup is not None:
            seen = spoken.sound.seen(FIRST_FRAMES)
            spoken.store = self._lookup.look_up(appearance, seen, position, "never", False).store
        speech, samples = spoken.sound.speech(spoken.next, 1.0, spoken.store)
        job = Job(
            self._number,
            self.epoch,
            next(self._jobs),
            appearance.avatar,
            avatar_frame,
            now_ns + PATIENCE_NS,
            appearance.look,
            speech,
        )
        asked = _Asked(number, avatar_frame, spoken, spoken.next, now_ns, job.number)
        self._asked.append(asked)
        self._by_job[job.number] = asked
        self.jobs.append((job, samples))
        spoken.next += 1
        spoken.sound.forget(spoken.next)
