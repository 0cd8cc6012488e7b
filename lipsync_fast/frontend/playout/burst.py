# SPDX-License-Identifier: Apache-2.0
"""A session with ``pace: burst``: every frame as soon as it is made, in order, with no clock.

Frame k of all that was said is picture k: the same pictures that ``render`` makes of the sound.
At most ``IN_FLIGHT`` frames are asked for and not yet sent: the caller calls ``tick`` when it can
send, so a client that reads slowly slows its own session down and nothing else.

A frame that engines had no time for is asked for again, as often as it takes. It is given up only
where it cannot be made, or where no engine has answered at all for a minute.
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
"""Engines make what is more urgent before a frame for so long, and then give it back."""
AGAIN_NS = 5_000_000_000
"""The same of a frame that was given back: it has waited long enough."""
GIVE_UP_NS = 2 * PATIENCE_NS
"""A frame that no engine has made or given back for so long is given up."""


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
    quiet: bool = False
    """It was ended since no more sound came."""


@dataclass(slots=True)
class _Asked:
    number: int
    spoken: _Spoken
    frame: int
    asked_ns: int
    since_ns: int
    """When it was asked for last."""
    job: Job
    samples: F32
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
        self.epoch = self.late = self.left_out = 0
        self.margin_ns = 0
        self._utterances: deque[_Spoken] = deque()
        self._asked: deque[_Asked] = deque()
        self._by_job: dict[int, _Asked] = {}
        self._skipped: list[_Asked] = []
        """Those that engines had no time for, to be asked for again."""
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

    def end_utterance(self, now_ns: int, quiet: bool = False) -> None:
        """All of the utterance has come; without an open one nothing happens."""
        if self.open:
            spoken = self._utterances[-1]
            spoken.quiet = quiet
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
        self._skipped.clear()
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
            if answer.status == Status.SKIPPED:
                self._skipped.append(asked)
                return True
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
        return self._asked[0].since_ns + GIVE_UP_NS if self._asked else None

    @property
    def owes(self) -> bool:
        """Frames of what is being said can be made by now, and were not shown."""
        return bool(self._asked) or any(
            spoken.sound.ended or spoken.next < spoken.sound.decided for spoken in self._utterances
        )

    @property
    def latency_ms(self) -> float:
        """From a sound to the earliest moment at which its picture can be made."""
        return self._appearance.manifest.audio.lookahead_samples * 1000 / SAMPLE_RATE

    def tick(self, now_ns: int) -> list[Event]:
        """What is made by now, in order; asks for more."""
        events: list[Event] = []
        self._ask_again(now_ns)
        while self._asked:
            asked = self._asked[0]
            if not asked.done and now_ns < asked.since_ns + GIVE_UP_NS:
                break
            self._asked.popleft()
            self._by_job.pop(asked.job.number, None)
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
                    asked.job.avatar_frame,
                    flags,
                    spoken.number,
                    asked.jpeg,
                    asked.box,
                    asked.frame,
                    asked.asked_ns,
                    asked.job.number,
                    appearance=self._appearance,
                )
            )
        if last:
            frames = spoken.sound.frames or 0
            events.append(Ended(spoken.number, frames, spoken.dropped, spoken.quiet))
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

    def _ask_again(self, now_ns: int) -> None:
        """Ask for what engines had no time for: they live, so it is waited for anew."""
        for asked in self._skipped:
            number, deadline_ns = next(self._jobs), now_ns + AGAIN_NS
            asked.job = msgspec.structs.replace(asked.job, number=number, deadline_ns=deadline_ns)
            asked.since_ns = now_ns
            self._by_job[number] = asked
            self.jobs.append((asked.job, asked.samples))
        self._skipped.clear()

    def _ask(self, spoken: _Spoken, now_ns: int) -> None:
        number, self._pictures = self._pictures, self._pictures + 1
        appearance, position = self._appearance, number - self._first
        avatar_frame = appearance.manifest.avatar_frame(position)
        if spoken.next == 0 and self._lookup is not None and appearance.kept:
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
        asked = _Asked(number, spoken, spoken.next, now_ns, now_ns, job, samples)
        self._asked.append(asked)
        self._by_job[job.number] = asked
        self.jobs.append((job, samples))
        spoken.next += 1
        spoken.sound.forget(spoken.next)
