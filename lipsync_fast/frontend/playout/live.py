# SPDX-License-Identifier: Apache-2.0
"""A live session's clock: which picture is due when, and what must be made for it.

Time is cut into slots of 40 ms; slot n is shown at ``origin + 40 ms * n``, over the avatar's frame
n of its loop.

    sound ─► utterances ─► plan: slot by slot, what it will show ─► jobs
                                                                    │
    pictures ◄─ tick: the slot's picture, or what stands in ◄─ answers

- Between idle and speech the mouth is drawn from the avatar's own to the generated one over
  ``LEAD`` slots before the first frame, and back behind the last one.
- The first frame of an utterance is shown ``margin`` after all sound that it sees has come, as far
  as that can be foretold from sound in real time; the others follow in step. Frame n always shows
  the sound of its own 40 ms. Before an utterance the slots move back by less than one, so that none
  of that time is wasted.
- Sound that comes faster than real time waits in the utterance; the caller stops reading while
  ``queued_s`` is beyond its bound.
- Under-run: when a slot comes whose sound has not, the mouth closes and rests until it has; what
  follows moves back as a whole, and never runs faster to catch up.
- A picture that is not there at its slot, nor ``GRACE_NS`` behind it, is late: it is counted and
  skipped, the last one is repeated, and the rest stays in step. Only when its engine was lost do
  all wait for it, for up to ``hold``; then they are shown without pause until the clock is reached
  again.
- An utterance whose frames are kept, and whose sound is there, begins at once (``recalling.py``):
  its first frames lead in, and its slots are moved to where it begins. The loop may go on from
  another place then, one that looks alike.
- An interruption raises the epoch: what was planned is void, also on its way to and from engines.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import MIN_SAMPLES
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.frontend.playout.cached_start import Recalling
from lipsync_fast.frontend.playout.frame_cache import Recall, told
from lipsync_fast.frontend.playout.plan import Change, Planned, Spoken
from lipsync_fast.frontend.playout.playout import Ended, Event, Flag, Picture, Speaker, Started
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.ipc.messages import Answer, Job, Look, Speech, Status, StoreMode
from lipsync_fast.timing import SLOT_NS
from lipsync_fast.utterances.transitions import LEAD, NO_SHARE, STEP_IN, STEP_OUT

MARGIN_NS = 66_000_000
"""From the moment that a frame's sound is there to its slot: time to make and send it."""
GRACE_NS = 25_000_000
"""How long a picture that is not there at its slot is waited for: it comes a little late, but it
comes, and the next one is on time."""
HOLD_NS = 450_000_000
"""How long to wait for frames whose engine was lost."""
AHEAD = 8
"""Slots that are planned before they are due, where sound is there."""
IDLE_AHEAD = 3
"""Slots of the avatar's own pictures that are asked for, where they are not at hand."""
LATE_IN_A_ROW = 3
"""Frames that are late one after the other before the clock gives engines more time."""
BEAT_NS = SLOT_NS // 4
"""Sessions that rest are shown on common beats: a front that serves hundreds wakes no more often
than there are beats. An utterance's slots lie where its sound wants them."""
NOTHING = np.zeros(0, np.float32)
NO_STREAM = 0
"""Of no utterance: those of a front are numbered from 1."""
SILENCE = np.zeros(MIN_SAMPLES, np.float32)


@dataclass
class LiveSession(Recalling, Speaker[Spoken]):
    """One session with ``pace: live``; see ``pace.Pace``.

    Args:
        number: of the session in its front.
        manifest: the avatar's.
        avatar: the key under which engines know it.
        look: how pictures are encoded.
        now_ns: the time, on CLOCK_MONOTONIC.
        streams: gives each utterance a number of its own in this front.
        own_ready: whether the avatar's own pictures are at hand in the look; else they are asked
            of the engine.
        idle: show the avatar between utterances too.
        stride: of the slots in which nothing is said, one in so many is shown.
        margin: MARGIN_NS, or what engines need now.
        hold_ns: see HOLD_NS.
        recall: what was said before; None where nothing is kept.
    """

    number: int
    manifest: Manifest
    avatar: str
    look: Look
    now_ns: int
    streams: Callable[[], int]
    own_ready: Callable[[], bool]
    idle: bool = True
    margin: Callable[[], int] = lambda: MARGIN_NS
    hold_ns: int = HOLD_NS
    stride: Callable[[], int] = lambda: 1
    recall: Recall | None = None
    jobs: deque[tuple[Job, F32]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.epoch = 0
        self.late = 0
        self.margin_ns = self.margin()
        self._late_in_a_row = 0
        self._begun_ns = self._origin_ns = self.now_ns - self.now_ns % BEAT_NS
        self._slot = 0
        """To be shown next."""
        self._next = 0
        """To be planned next."""
        self._utterances: deque[Spoken] = deque()
        self._planned: dict[int, Planned] = {}
        self._by_job: dict[int, Planned] = {}
        self._numbers, self._jobs = itertools.count(1), itertools.count(1)
        self._shown: Planned | None = None
        self._share = 0.0
        """Of the slot shown last."""
        self._last_speech: tuple[Speech, F32] | None = None
        self._behind = False
        """The clock was held and is not reached again yet."""
        self._expects = False
        """A slot is due whose picture is waited for."""
        self._change: Change | None = None
        self._held_ns = 0
        """Until when pictures are waited for, since an engine was lost."""
        self._shifted_ns = 0
        """How far the slots were moved back since the last picture: less than one of them."""
        self._offset = 0
        """Of the loop's place, from the slot's number."""

    # ------------------------------------------------------------ what comes in
    def hear(self, pcm: F32, now_ns: int) -> int:
        """Sound, 16 kHz mono; begins an utterance where none is open. Gives its number."""
        if not self.open:
            sound = Utterance(self.streams(), self.manifest.audio)
            self._utterances.append(Spoken(next(self._numbers), sound, now_ns))
        spoken = self._utterances[-1]
        if len(pcm):
            spoken.sound.push(pcm)
            spoken.heard_ns = now_ns
            self._plan(now_ns)
        return spoken.number

    def end_utterance(self, now_ns: int) -> None:
        """What was heard is all; without an open utterance nothing happens."""
        if self.open:
            spoken = self._utterances[-1]
            spoken.sound.end()
            spoken.heard_ns = now_ns
            if spoken.sound.samples == 0:
                self._utterances.pop()
            self._plan(now_ns)

    def interrupt(self, now_ns: int) -> int:
        """Drop all that is to be said; the number of the last slot that was shown, or -1."""
        self.epoch += 1
        self._utterances.clear()
        self.jobs.clear()
        self._drop_from(self._slot)
        self._by_job.clear()
        self._shown = None  # what stands in for a late picture is the avatar's own
        self._behind = False
        self._plan(now_ns)
        return self._slot - 1

    def change(self, manifest: Manifest, avatar: str, look: Look) -> None:
        """Another avatar or look: from the next moment on in which nothing is spoken."""
        self._change = Change(manifest, avatar, look)

    def answered(self, answer: Answer, jpeg: bytes) -> bool:
        """What an engine made of a job; what is void is ignored. True where a tick is due."""
        planned = self._by_job.pop(answer.number, None) if answer.epoch == self.epoch else None
        if planned is not None:
            if answer.status == Status.MADE:
                planned.jpeg, planned.box = jpeg, answer.box
                if planned.spoken is not None:
                    told(planned.spoken, answer.kept)
            else:
                planned.failed = True
        return self._expects

    def lost(self, job: Job, now_ns: int) -> Job | None:
        """A job's engine is gone: the job with more time, or None when it is void."""
        planned = self._by_job.get(job.number) if job.epoch == self.epoch else None
        if planned is None:
            return None
        if not planned.lost:
            planned.lost = True
            self._held_ns = max(self._held_ns, now_ns + self.hold_ns)
            planned.held_ns = self._held_deadline(job.deadline_ns)
        return msgspec.structs.replace(job, deadline_ns=planned.held_ns)

    def _held_deadline(self, deadline_ns: int) -> int:
        """Of a job since an engine was lost. Engines take jobs of one deadline as they come, so
        none is overtaken by one that is shown behind it."""
        return max(deadline_ns, self._held_ns)

    # ------------------------------------------------------------ time
    def _due(self, slot: int) -> int:
        return self._origin_ns + SLOT_NS * slot

    @property
    def wake_ns(self) -> int:
        """When to tick next, whatever else happens."""
        slot = self._slot
        if not (self._planned or self._utterances or self._share):
            slot += -slot % self.stride()
        due = self._due(slot)
        if self._expects:
            due = max(due, self._until(self._slot))
        begin = self._begin_ns(self._utterances[-1]) if self._utterances else None
        return due if begin is None else min(due, begin)

    @property
    def latency_ms(self) -> float:
        """From a sound to the picture that shows it."""
        margin_ns = max(self.margin_ns, self.margin()) if self.recall else self.margin_ns
        return self.manifest.audio.lookahead_samples / 16 + margin_ns / 1e6

    def tick(self, now_ns: int) -> list[Event]:
        """What the slots that are due by now show. Slots missed long ago are passed over."""
        events: list[Event] = []
        self._plan(now_ns)
        while self._due(self._slot) <= now_ns:
            if now_ns < self._until(self._slot):
                held = self._planned[self._slot].held_ns > 0
                self._behind, self._expects = self._behind or held, True
                return events
            self._expects = False
            events += self._show(now_ns)
            self._slot += 1
            self._plan(now_ns)
        self._behind = False
        return events

    def _until(self, slot: int) -> int:
        """How long the picture of a slot is waited for; 0 where it is there, or never comes."""
        planned = self._planned.get(slot)
        if planned is None or not planned.job or planned.jpeg is not None or planned.failed:
            return 0
        return max(planned.held_ns, self._due(slot) + GRACE_NS)

    # ------------------------------------------------------------ planning
    @property
    def _lead(self) -> int:
        return LEAD if self.idle else 0

    def _plan(self, now_ns: int) -> None:
        """Give slots to what is known now, and ask for it."""
        self._apply_change()
        self._next = max(self._next, self._slot)
        horizon = max(self._slot, (now_ns - self._origin_ns) // SLOT_NS) + AHEAD
        while self._next < horizon:
            spoken = next((u for u in self._utterances if not u.planned), None)
            if spoken is not None and not spoken.under_way:
                begin = self._begin_ns(spoken)
                if begin is not None and begin <= now_ns:
                    self._begin(spoken, begin, now_ns)
                    continue
            elif spoken is not None and spoken.frames_wait and self._begin_at_once(spoken, now_ns):
                continue
            if spoken is not None and spoken.under_way:
                if not self._plan_speech(spoken, now_ns):
                    return
            elif not self._plan_rest(now_ns):
                return

    def _apply_change(self) -> None:
        if self._change is None or self._utterances:
            return
        new, self._change = self._change, None
        self.manifest, self.avatar, self.look = new.manifest, new.name, new.look
        self._drop_from(self._slot)
        self._shown, self._last_speech, self._share, self._offset = None, None, 0.0, 0

    def _begin_ns(self, spoken: Spoken) -> int | None:
        """When to begin (again) with an utterance; None while that cannot be said."""
        if spoken.under_way or spoken.planned:
            return None
        if spoken.decided:
            return spoken.heard_ns
        if spoken.next > 0 or not self._lead or spoken.sound.samples == 0:
            return None
        missing = self.manifest.audio.lookahead_samples - spoken.sound.samples
        decided = spoken.heard_ns + max(0, missing) * 1_000_000_000 // 16_000
        return max(spoken.heard_ns, decided - self._lead * SLOT_NS)

    def _begin(self, spoken: Spoken, begin_ns: int, now_ns: int) -> None:
        """Choose the first slot of an utterance's way in, ``margin`` from its beginning."""
        if spoken.frames_wait and self._begin_at_once(spoken, now_ns):
            return
        spoken.under_way = True
        self.margin_ns = self.margin()
        if now_ns - begin_ns > self.margin_ns // 4:
            begin_ns = now_ns
        wanted = begin_ns + self.margin_ns
        slot = max(self._slot, (wanted - self._origin_ns) // SLOT_NS)
        said = [n for n, p in self._planned.items() if p.spoken is not None]
        if said:
            slot = max(slot + 1, max(said) + 1)
        elif (shift := max(0, wanted - self._due(slot))) + self._shifted_ns < SLOT_NS:
            self._origin_ns += shift
            self._shifted_ns += shift
        else:
            slot += 1
        self._drop_from(slot)
        while self._next < slot and self._plan_rest(now_ns, everything=True):
            pass

    def _share_before(self, slot: int) -> float:
        before = self._planned.get(slot - 1)
        return before.share if before is not None else self._share

    def _plan_speech(self, spoken: Spoken, now_ns: int) -> bool:
        """Plan the next slot of an utterance: of its way in, or its next frame."""
        slot = self._next
        share = self._share_before(slot) if self._lead else 1.0
        if spoken.at_once:
            share = min(1.0, share + STEP_IN)
        elif share < 1 - NO_SHARE and not (self._due(slot) <= now_ns and spoken.decided):
            speech, samples = self._last_speech or self._unheard(spoken)
            if spoken.next == 0:
                speech, samples = self._unheard(spoken)
            share = share + STEP_IN
            if share < 1 - NO_SHARE:
                faded = msgspec.structs.replace(speech, share=share)
                self._ask(Planned(0, share), faded, samples, now_ns)
                return True
        if not spoken.decided:
            if self._due(slot) > now_ns:
                return False
            # Under-run: rest, and let what follows move back.
            spoken.under_way = spoken.at_once = False
            return True
        frame, frames = spoken.next, spoken.sound.frames
        if frame == 0 and not spoken.at_once:
            self._recognise(spoken, slot)
        flags = Flag.NONE
        if frame == 0:
            flags |= Flag.FIRST
        if frames is not None and frame == frames - 1:
            flags |= Flag.LAST
        if not spoken.at_once:
            share = 1.0
        speech, samples = spoken.sound.speech(frame, share, spoken.store)
        self._last_speech = speech, samples
        self._ask(Planned(0, share, flags, spoken, frame), speech, samples, now_ns)
        if not spoken.at_once:
            self._keep_blended(speech, samples, slot, now_ns)
        spoken.next += 1
        spoken.sound.forget(spoken.next)
        return True

    def _unheard(self, spoken: Spoken) -> tuple[Speech, F32]:
        """What a mouth shows of an utterance before any of it is heard: vectors of zeros, or of
        silence where the networks never see zeros."""
        store = StoreMode.OFF if self.recall is None else self.recall.lead
        audio = self.manifest.audio
        if audio.padded:
            return Speech(spoken.sound.stream, -audio.after, None, 0, store=store), NOTHING
        return Speech(NO_STREAM, 0, len(SILENCE), 0, store=store), SILENCE

    def _plan_rest(self, now_ns: int, everything: bool = False) -> bool:
        """Plan a slot without speech: the mouth on its way back, or the avatar's own picture."""
        slot = self._next
        share = self._share_before(slot) - STEP_OUT
        if share > NO_SHARE and self._last_speech is not None and self._lead:
            speech, samples = self._last_speech
            faded = msgspec.structs.replace(speech, share=share)
            self._ask(Planned(0, share), faded, samples, now_ns)
            return True
        index = self._index(slot)
        if self._due(slot) <= now_ns or everything:
            pass
        elif slot >= self._slot + IDLE_AHEAD or not self.idle or self.own_ready():
            return False
        if self.idle and not self.own_ready() and slot % self.stride() == 0:
            self._ask(Planned(index, 0.0), None, NOTHING, now_ns)
        else:
            if not self._utterances and not self._planned:
                shift = -self._due(slot) % BEAT_NS
                if self._shifted_ns + shift < SLOT_NS:
                    self._origin_ns += shift
                    self._shifted_ns += shift
            self._planned[slot] = Planned(index, 0.0)
            self._next += 1
        return True

    def _ask(self, planned: Planned, speech: Speech | None, samples: F32, now_ns: int) -> None:
        """Give the next slot to a picture, and ask for it unless it is too late for that."""
        slot = self._next
        planned.index = self._index(slot)
        self._planned[slot] = planned
        self._next = slot + 1
        if self._due(slot) <= now_ns:
            if planned.spoken is None:  # what is shown again has its own share
                planned.share = self._share_before(slot)
            return
        planned.job = next(self._jobs)
        self._by_job[planned.job] = planned
        deadline_ns = self._due(slot) + GRACE_NS
        if now_ns < self._held_ns:  # the next engine has to catch up: these wait for it, too
            planned.held_ns = deadline_ns = self._held_deadline(deadline_ns)
        job = Job(
            self.number,
            self.epoch,
            planned.job,
            self.avatar,
            planned.index,
            deadline_ns,
            self.look,
            speech,
        )
        self.jobs.append((job, samples))

    def _drop_from(self, slot: int) -> None:
        """Take back what was planned for a slot and those behind it."""
        for number in [n for n in self._planned if n >= slot]:
            self._by_job.pop(self._planned.pop(number).job, None)
        self._next = min(self._next, slot)

    # ------------------------------------------------------------ showing
    def _show(self, now_ns: int) -> list[Event]:
        """The present slot's picture and what is to be told with it."""
        slot, events = self._slot, list[Event]()
        passed_over = not self._behind and now_ns - self._due(slot) > AHEAD * SLOT_NS
        planned = self._planned.pop(slot, None) or Planned(self._index(slot), self._share)
        self._by_job.pop(planned.job, None)
        self._share, self._shifted_ns = planned.share, 0
        spoken = planned.spoken
        if spoken is not None and planned.flags & Flag.FIRST:
            spoken.shown = True
            events.append(Started(spoken.number))
        own = planned.job == 0 and planned.share == 0 and self.own_ready()
        missing = planned.jpeg is None and not own
        if spoken is not None:
            late = missing or passed_over
            spoken.dropped += late
            self.late += late
            self._late_in_a_row = self._late_in_a_row + 1 if late else 0
            if self._late_in_a_row >= LATE_IN_A_ROW:
                self._slow_down()
        rests = planned.share == 0 and spoken is None
        left_out = passed_over or (rests and (not self.idle or slot % self.stride() > 0))
        if not left_out:
            events.append(
                self._repeated(slot, planned) if missing else self._picture(slot, planned)
            )
        if not missing:
            self._shown = planned
        if spoken is not None and planned.flags & Flag.LAST:
            events.append(Ended(spoken.number, spoken.sound.frames or 0, spoken.dropped))
            self._utterances.remove(spoken)
        return events

    def _slow_down(self) -> None:
        """Engines take longer than the margin: move all that comes back, once, by the rest."""
        more = self.margin() - self.margin_ns
        if more > 0:
            self.margin_ns += more
            self._origin_ns += more
            self._late_in_a_row = 0

    def _picture(self, slot: int, planned: Planned) -> Picture:
        due = self._due(slot)
        return Picture(
            slot,
            due - self._begun_ns,
            planned.index,
            planned.flags,
            planned.spoken.number if planned.spoken is not None else 0,
            planned.jpeg,
            planned.box,
            planned.frame,
            due - self.margin_ns,
            planned.job,
        )

    def _repeated(self, slot: int, planned: Planned) -> Picture:
        """The last picture again, or the avatar's own one where there is none."""
        before = self._shown or Planned(planned.index, 0.0)
        return self._picture(
            slot,
            replace(
                planned,
                index=before.index,
                jpeg=before.jpeg,
                box=before.box,
                job=0,
                flags=planned.flags | Flag.REPEATED,
            ),
        )
