# SPDX-License-Identifier: Apache-2.0
"""A live session's clock: which picture is due when, and what must be made for it.

Time is cut into slots of 40 ms; slot n is shown at ``origin + 40 ms * n``, and shows the avatar's
frame n of its loop. No input or output happens here: sound, answers and the time go in, jobs and
pictures come out, so that a test can play hours in a second.

    sound ─► utterances ─► plan: frames that are decided, each to its slot ─► jobs
                                                                               │
    pictures ◄─ tick: the slot's picture, or what stands in for it ◄─ answers ◄┘

- A frame of an utterance gets its slot when all sound that it sees has come: the first one
  ``MARGIN_NS`` later, all others in step behind it. Frame n always shows the sound of its 40 ms.
- Sound that comes faster than real time waits in the utterance; the caller stops reading while
  ``queued_s`` is beyond its bound.
- Under-run: when a slot comes whose sound has not, the mouth closes and rests until it has; what
  follows moves back as a whole, and never runs faster to catch up.
- A picture that is not there at its slot is late: it is counted and skipped, the last one is
  repeated, and the rest stays in step.
- An interruption raises the epoch: what was planned is void, also on its way to and from engines.
- Between idle and speech, the mouth is drawn from the avatar's own to the generated one over a few
  frames before the first and behind the last one, which are padding to the networks.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio import FRAME_SAMPLES
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.frontend.utterance import Utterance
from lipsync_fast.ipc.messages import Answer, Job, Look, Speech, Status

F32 = NDArray[np.float32]
SLOT_NS = 40_000_000
MARGIN_NS = 60_000_000
"""From the moment that a frame's sound is there to its slot: time to make and send it."""
AHEAD = 8
"""Slots that are planned before they are due."""
LEAD = 3
"""Frames over which the mouth is drawn to the generated one, and back."""
NOTHING = np.zeros(0, np.float32)


class Flag(IntFlag):
    """What a picture is; the bits of lipsync.v1."""

    NONE = 0
    IDLE = 1
    FIRST = 2
    LAST = 4
    REPEATED = 8


@dataclass(frozen=True)
class Picture:
    """What to show in a slot.

    Attributes:
        number: of the slot, counted from the session's start.
        pts_ns: when it is shown, from the session's start.
        index: the avatar's frame under it.
        flags: what it is.
        utterance: whose sound it shows; 0 for none.
        jpeg: the picture; None for the avatar's own.
        box: x, y, width and height of the picture in the avatar's frame.
    """

    number: int
    pts_ns: int
    index: int
    flags: Flag
    utterance: int
    jpeg: bytes | None
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Started:
    """The first frame of an utterance is shown."""

    utterance: int


@dataclass(frozen=True)
class Ended:
    """The last frame of an utterance was shown, or would have been."""

    utterance: int
    frames: int
    dropped: int


Event = Picture | Started | Ended


@dataclass
class _Spoken:
    """An utterance on its way through the slots."""

    number: int
    sound: Utterance
    next: int
    """Frame to be planned next; negative ones come before the sound."""
    start: int | None = None
    """Slot of frame 0; None while it is not known when it can be shown."""
    dropped: int = 0


@dataclass
class _Planned:
    """What a slot is to show."""

    job: int
    index: int
    flags: Flag
    spoken: _Spoken | None
    last: bool = False
    """The last frame of its utterance, padding apart."""
    jpeg: bytes | None = None
    box: tuple[int, int, int, int] | None = None
    failed: bool = False


@dataclass
class LiveSession:
    """One session with ``pace: live``.

    Args:
        number: of the session in its front.
        manifest: the avatar's.
        avatar: the name under which engines know it.
        look: how pictures are encoded.
        now_ns: the time, on CLOCK_MONOTONIC.
        streams: gives each utterance a number of its own in this front.
        own_ready: whether the avatar's own picture of an index is at hand in this look; else it is
            asked of the engine.
        idle: show the avatar between utterances too.
    """

    number: int
    manifest: Manifest
    avatar: str
    look: Look
    now_ns: int
    streams: Callable[[], int]
    own_ready: Callable[[int], bool]
    idle: bool = True
    jobs: deque[tuple[Job, F32]] = field(default_factory=deque)
    """Jobs to be sent; the caller takes them out."""

    def __post_init__(self) -> None:
        self.epoch = 0
        self.late = 0
        self._begun_ns = self._origin_ns = self.now_ns
        self._slot = 0
        self._utterances: deque[_Spoken] = deque()
        self._planned: dict[int, _Planned] = {}
        self._by_job: dict[int, _Planned] = {}
        self._numbers, self._jobs = itertools.count(1), itertools.count(1)
        self._shown: _Planned | None = None
        self._last_speech: tuple[Speech, F32] | None = None

    # ------------------------------------------------------------ what comes in
    def hear(self, pcm: F32, now_ns: int) -> None:
        """Sound, 16 kHz mono; begins an utterance where none is open."""
        if len(pcm) == 0:
            return
        if not self._utterances or self._utterances[-1].sound.ended:
            sound = Utterance(self.streams(), self.manifest.audio)
            self._utterances.append(_Spoken(next(self._numbers), sound, -self._lead))
        self._utterances[-1].sound.push(pcm)
        self._plan(now_ns)

    def end_utterance(self, now_ns: int) -> None:
        """What was heard is all; without an open utterance nothing happens."""
        if self._utterances and not self._utterances[-1].sound.ended:
            self._utterances[-1].sound.end()
            self._plan(now_ns)

    def interrupt(self, now_ns: int) -> int:
        """Drop all that is to be said; the number of the last slot that was shown, or -1."""
        self.epoch += 1
        self._utterances.clear()
        self._planned.clear()
        self._by_job.clear()
        self.jobs.clear()
        self._shown = None  # what stands in for a late picture is the avatar's own
        self._rest(self._slot, now_ns)
        return self._slot - 1

    def answered(self, answer: Answer, jpeg: bytes) -> None:
        """What an engine made of a job; answers to what is void are ignored."""
        planned = self._by_job.pop(answer.number, None) if answer.epoch == self.epoch else None
        if planned is None:
            return
        if answer.status == Status.MADE:
            planned.jpeg, planned.box = jpeg, answer.box
        else:
            planned.failed = True

    # ------------------------------------------------------------ time
    @property
    def due_ns(self) -> int:
        """When the next slot is due."""
        return self._origin_ns + SLOT_NS * self._slot

    @property
    def speaking(self) -> bool:
        """An utterance is open or not all shown."""
        return bool(self._utterances)

    @property
    def queued_s(self) -> float:
        """Seconds of sound that have come and are not planned yet."""
        waiting = sum(s.sound.samples - max(0, s.next) * FRAME_SAMPLES for s in self._utterances)
        return max(0, waiting) / 16_000

    @property
    def latency_ms(self) -> float:
        """From a sound to the picture that shows it."""
        return self.manifest.audio.lookahead_samples / 16 + MARGIN_NS / 1e6

    def tick(self, now_ns: int) -> list[Event]:
        """What the slots that are due by now show. Slots missed long ago are passed over."""
        events: list[Event] = []
        while self.due_ns <= now_ns:
            self._plan(now_ns)
            events += self._show(now_ns)
            self._slot += 1
        self._plan(now_ns)
        return events

    # ------------------------------------------------------------ planning
    @property
    def _lead(self) -> int:
        return LEAD if self.idle else 0

    def _plan(self, now_ns: int) -> None:
        """Give slots to all frames that are decided and near, and ask for them."""
        for spoken in self._utterances:
            if not self._plan_utterance(spoken, now_ns):
                break
        self._plan_own(now_ns)

    def _plan_utterance(self, spoken: _Spoken, now_ns: int) -> bool:
        """Plan what can be planned; True when all of it has been."""
        sound = spoken.sound
        while spoken.next < self._end(spoken):
            if not self._is_decided(spoken):
                return False
            if spoken.start is None:
                spoken.start = self._first_slot(now_ns) - spoken.next
            slot = spoken.start + spoken.next
            if slot >= self._slot + AHEAD:
                return False
            self._plan_frame(spoken, slot, now_ns)
            spoken.next += 1
            sound.forget(spoken.next)
        return sound.ended

    def _end(self, spoken: _Spoken) -> int:
        """The frame behind the last one that is planned."""
        frames = spoken.sound.frames
        return 1 << 60 if frames is None else frames + self._lead

    def _is_decided(self, spoken: _Spoken) -> bool:
        sound = spoken.sound
        if spoken.next >= 0:
            return sound.ended or spoken.next < sound.decided
        # A frame before the first is shown as long before it as it is decided.
        return sound.ended or sound.decided_before(spoken.next)

    def _first_slot(self, now_ns: int) -> int:
        """The slot in which a frame that was decided now is shown.

        While nothing is spoken, the slots are moved back by less than one, so that it is shown
        ``MARGIN_NS`` from now exactly.
        """
        wanted = now_ns + MARGIN_NS
        slot = max(self._slot, (wanted - self._origin_ns) // SLOT_NS)
        spoken = [n for n, p in self._planned.items() if p.spoken is not None]
        if spoken:
            return max(slot + 1, *(n + 1 for n in spoken))
        self._origin_ns += max(0, wanted - (self._origin_ns + SLOT_NS * slot))
        return slot

    def _plan_frame(self, spoken: _Spoken, slot: int, now_ns: int) -> None:
        frame, frames = spoken.next, spoken.sound.frames
        padding = frame < 0 or (frames is not None and frame >= frames)
        share = 1.0
        if frame < 0:
            share = (frame + self._lead + 1) / (self._lead + 1)
        elif frames is not None and frame >= frames:
            share = 1 - (frame - frames + 1) / (self._lead + 1)
        flags = Flag.IDLE if padding else Flag.NONE
        if frame == 0:
            flags |= Flag.FIRST
        last = frames is not None and frame == frames - 1
        if last:
            flags |= Flag.LAST
        speech, samples = spoken.sound.speech(frame, share)
        self._last_speech = speech, samples
        self._ask(slot, speech, samples, _Planned(0, 0, flags, spoken, last), now_ns)

    def _ask(
        self, slot: int, speech: Speech | None, samples: F32, planned: _Planned, now_ns: int
    ) -> None:
        """Give a slot to a picture, and ask for it unless it is too late for that."""
        planned.job, planned.index = next(self._jobs), self.manifest.picture_index(slot)
        replaced = self._planned.get(slot)
        if replaced is not None:
            self._by_job.pop(replaced.job, None)
        self._planned[slot] = planned
        deadline = self._origin_ns + SLOT_NS * slot
        if deadline <= now_ns:
            return
        self._by_job[planned.job] = planned
        job = Job(
            self.number,
            self.epoch,
            planned.job,
            self.avatar,
            planned.index,
            deadline,
            self.look,
            speech,
        )
        self.jobs.append((job, samples))

    def _plan_own(self, now_ns: int) -> None:
        """Ask for the avatar's own pictures where they are not at hand."""
        if not self.idle:
            return
        for slot in range(self._slot, self._slot + AHEAD):
            if slot not in self._planned and not self.own_ready(self.manifest.picture_index(slot)):
                self._ask(slot, None, NOTHING, _Planned(0, 0, Flag.IDLE, None), now_ns)

    def _rest(self, first: int, now_ns: int) -> None:
        """Draw the mouth back from the last planned frame to the avatar's own, from a slot on."""
        if self._last_speech is None or not self._lead:
            return
        speech, samples = self._last_speech
        self._last_speech = None
        for k in range(LEAD):
            share = speech.share * (1 - (k + 1) / (LEAD + 1))
            faded = Speech(speech.stream, speech.frame, speech.samples, speech.first, share)
            self._ask(first + k, faded, samples, _Planned(0, 0, Flag.IDLE, None), now_ns)

    # ------------------------------------------------------------ showing
    def _show(self, now_ns: int) -> list[Event]:
        """The present slot's picture and what is to be told with it."""
        slot, events = self._slot, list[Event]()
        passed_over = now_ns - self.due_ns > AHEAD * SLOT_NS
        planned = self._planned.pop(slot, None)
        if planned is None or planned.spoken is None:
            stopped = self._check_underrun(now_ns)
            if planned is None or stopped:
                if self.idle and not passed_over:
                    events.append(self._stand_in(slot, stopped))
                return events
        self._by_job.pop(planned.job, None)
        spoken = planned.spoken
        if spoken is not None and planned.flags & Flag.FIRST:
            events.append(Started(spoken.number))
        if planned.jpeg is None or passed_over:
            if spoken is not None and not planned.flags & Flag.IDLE:
                spoken.dropped += 1
                self.late += 1
            if not passed_over and (self.idle or spoken is not None):
                events.append(self._repeated(slot, planned))
        else:
            events.append(self._picture(slot, planned, planned.flags))
            self._shown = planned
        if spoken is not None and planned.last:
            frames = spoken.sound.frames or 0
            events.append(Ended(spoken.number, frames, spoken.dropped))
        if spoken is not None and slot + 1 == (spoken.start or 0) + self._end(spoken):
            self._utterances.remove(spoken)
            self._last_speech = None
        return events

    def _check_underrun(self, now_ns: int) -> bool:
        """A slot has come whose sound has not: rest, and let what follows move back."""
        spoken = self._utterances[0] if self._utterances else None
        if spoken is None or spoken.start is None or spoken.start + spoken.next > self._slot:
            return False
        spoken.start = None
        self._rest(self._slot + 1, now_ns)
        return True

    def _picture(self, slot: int, planned: _Planned, flags: Flag) -> Picture:
        number = planned.spoken.number if planned.spoken is not None else 0
        utterance = 0 if flags & Flag.IDLE else number
        pts = self._origin_ns + SLOT_NS * slot - self._begun_ns
        return Picture(slot, pts, planned.index, flags, utterance, planned.jpeg, planned.box)

    def _stand_in(self, slot: int, repeat: bool) -> Picture:
        """A picture for a slot that has none: the avatar's own, or the last one again."""
        index = self.manifest.picture_index(slot)
        planned = _Planned(0, index, Flag.IDLE, None)
        if repeat or not self.own_ready(index):
            return self._repeated(slot, planned)
        self._shown = None
        return self._picture(slot, planned, Flag.IDLE)

    def _repeated(self, slot: int, planned: _Planned) -> Picture:
        """The last picture again, or the avatar's own one where there is none."""
        before = self._shown
        if before is None:
            stand_in = _Planned(0, planned.index, planned.flags, planned.spoken)
        else:
            stand_in = _Planned(
                0, before.index, planned.flags, planned.spoken, jpeg=before.jpeg, box=before.box
            )
        return self._picture(slot, stand_in, planned.flags | Flag.REPEATED)
