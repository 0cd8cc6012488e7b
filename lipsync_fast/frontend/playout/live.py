# SPDX-License-Identifier: Apache-2.0
"""The playout of a live session: which picture is due when.

Time is cut into slots of 40 ms; slot n is shown at ``origin + 40 ms * n``, over the avatar's frame
n of its loop.

    sound ─► utterances ─► plan: slot by slot, what it will show ─► jobs        (plan.py)
                                                                    │
    pictures ◄─ tick: the slot's picture, or what stands in ◄─ answers          (here)

- Between idle and speech the mouth is drawn from the avatar's own to the generated one over
  ``LEAD`` slots before the first frame, and back behind the last one.
- The first frame of an utterance is shown ``margin`` after all sound that it sees has come, as far
  as that can be foretold from sound in real time; the others follow in step. Frame n always shows
  the sound of its own 40 ms. Before an utterance the slots move back by less than one, so that none
  of that time is wasted.
- Sound that comes faster than real time waits in the utterance; the caller stops reading while
  ``queued_s`` is beyond its bound.
- Of sound that comes in real time by a clock that is faster, a frame of a pause is left out now and
  then (``drift.py``); where engines cannot make all frames, every second one (``speech_rate.py``).
- Under-run: when a slot comes whose sound has not, the mouth closes and rests until it has; what
  follows moves back as a whole, and never runs faster to catch up.
- A picture that is not there at its slot, nor ``GRACE_NS`` behind it, is late: it is counted and
  skipped, the last one is repeated, and the rest stays in step. Only when its engine was lost do
  all wait for it, for up to ``hold``; then they are shown without pause until the clock is reached
  again.
- An utterance whose frames are kept, and whose sound is there, begins at once
  (``cached_start.py``): its first frames lead in, and its slots are moved to where it begins. The
  loop may go on from another position then, one that looks alike.
- While the client wants no pictures, slots go by as ever, and engines are asked for nothing.
- An interruption raises the epoch: what was planned is void, also on its way to and from engines.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec

from lipsync_fast.arrays import F32
from lipsync_fast.frontend.playout.plan import AHEAD, GRACE_NS, LiveSettings, Plan
from lipsync_fast.frontend.playout.playout import (
    Appearance,
    Ended,
    Event,
    Flag,
    Picture,
    Speaker,
    Started,
)
from lipsync_fast.frontend.playout.slots import Planned, Spoken
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.frontend.playout.utterance_lookup import note_answer
from lipsync_fast.ipc.messages import Answer, Job, Status
from lipsync_fast.timing import SAMPLE_RATE, SLOT_NS

LATE_IN_A_ROW = 3
"""Frames that are late one after the other before the playout gives engines more time."""


class LivePlayout(Speaker[Spoken]):
    """One session with ``pace: live``; see ``playout.Playout``.

    Args:
        settings: what it is given once.
        appearance: what it begins with.
        now_ns: the time, on CLOCK_MONOTONIC.
    """

    def __init__(self, settings: LiveSettings, appearance: Appearance, now_ns: int) -> None:
        self._settings = settings
        self._plan = Plan(settings, appearance, now_ns)
        self._timeline = self._plan.timeline
        self._utterances, self.jobs = self._plan.utterances, self._plan.jobs
        self.late = self.left_out = 0
        self._late_in_a_row = 0
        self._numbers = itertools.count(1)
        self._behind = False
        """Slots were put on hold, and the clock is not reached again yet."""
        self._expects = False
        """A slot is due whose picture is waited for."""

    @property
    def avatar(self) -> str:
        """The key of the avatar's version that is shown."""
        return self._plan.appearance.avatar

    @property
    def epoch(self) -> int:
        """Raised by each interruption."""
        return self._plan.epoch

    @property
    def margin_ns(self) -> int:
        """From the moment that a frame's sound is there to its slot."""
        return self._plan.margin_ns

    # ------------------------------------------------------------ what comes in
    def push_audio(self, pcm: F32, now_ns: int) -> int:
        """Sound, 16 kHz mono; begins an utterance where none is open. Gives its number."""
        if not self.open:
            window = self._plan.appearance.manifest.audio
            sound = Utterance(self._settings.new_stream(), window)
            self._utterances.append(Spoken(next(self._numbers), sound, now_ns))
        spoken = self._utterances[-1]
        if len(pcm):
            spoken.sound.push(pcm)
            spoken.arrived_ns = now_ns
            spoken.drift.heard(spoken.sound.samples, now_ns)
            self._plan.extend(now_ns)
        return spoken.number

    def end_utterance(self, now_ns: int, quiet: bool = False) -> None:
        """All of the utterance has come; without an open one nothing happens."""
        if self.open:
            spoken = self._utterances[-1]
            spoken.quiet = quiet
            spoken.sound.end()
            spoken.arrived_ns = now_ns
            if spoken.sound.samples == 0:
                self._utterances.pop()
            self._plan.extend(now_ns)

    def interrupt(self, now_ns: int) -> int:
        """Drop all that is to be said; the number of the last slot that was shown, or -1."""
        self._plan.interrupt()
        self._behind = False
        self._plan.extend(now_ns)
        return self._plan.slot - 1

    def change(self, appearance: Appearance) -> None:
        """Another avatar or look: from the next moment on in which nothing is spoken."""
        self._plan.change = appearance

    def answered(self, answer: Answer, jpeg: bytes) -> bool:
        """What an engine made of a job; what is void is ignored. True where a tick is due."""
        plan = self._plan
        planned = plan.by_job.pop(answer.number, None) if answer.epoch == plan.epoch else None
        if planned is not None:
            if answer.status == Status.MADE:
                planned.jpeg, planned.box = jpeg, answer.box
                if planned.spoken is not None:
                    note_answer(planned.spoken, answer.kept)
            else:
                planned.failed = True
        return self._expects

    def lost(self, job: Job, now_ns: int) -> Job | None:
        """A job's engine is gone: the job with more time, or None when it is void."""
        plan = self._plan
        planned = plan.by_job.get(job.number) if job.epoch == plan.epoch else None
        if planned is None:
            return None
        deadline_ns = plan.hold(planned, job.deadline_ns, now_ns)
        return msgspec.structs.replace(job, deadline_ns=deadline_ns)

    # ------------------------------------------------------------ time
    @property
    def wake_ns(self) -> int:
        """When to tick next, whatever else happens."""
        plan, slot = self._plan, self._plan.slot
        if not (plan.slots or self._utterances or plan.share):
            slot += -slot % self._settings.stride()
        due = self._timeline.due(slot)
        if self._expects:
            due = max(due, self._until(plan.slot))
        begin = plan.begin_ns(self._utterances[-1]) if self._utterances else None
        return due if begin is None else min(due, begin)

    @property
    def owes(self) -> bool:
        """Frames of what is being said can be made by now, and were not shown."""
        if len(self._utterances) != 1:
            return self.speaking
        planned = self._plan.slots.values()
        return self._utterances[0].decided or any(p.spoken is not None for p in planned)

    @property
    def latency_ms(self) -> float:
        """From a sound to the picture that shows it."""
        margin_ns = self._plan.margin_ns
        if self._settings.lookup is not None:
            margin_ns = max(margin_ns, self._settings.margin_ns())
        lookahead = self._plan.appearance.manifest.audio.lookahead_samples
        return lookahead * 1000 / SAMPLE_RATE + margin_ns / 1e6

    def tick(self, now_ns: int) -> list[Event]:
        """What the slots that are due by now show. Slots missed long ago are passed over."""
        events: list[Event] = []
        plan, timeline = self._plan, self._timeline
        plan.extend(now_ns)
        while timeline.due(plan.slot) <= now_ns:
            if now_ns < self._until(plan.slot):
                on_hold = plan.slots[plan.slot].hold_until_ns > 0
                self._behind, self._expects = self._behind or on_hold, True
                return events
            self._expects = False
            events += self._show(now_ns)
            plan.slot += 1
            plan.extend(now_ns)
        self._behind = False
        return events

    def _until(self, slot: int) -> int:
        """How long the picture of a slot is waited for; 0 where it is there, or never comes."""
        planned = self._plan.slots.get(slot)
        if planned is None or not planned.job or planned.jpeg is not None or planned.failed:
            return 0
        return max(planned.hold_until_ns, self._timeline.due(slot) + GRACE_NS)

    # ------------------------------------------------------------ showing
    def _show(self, now_ns: int) -> list[Event]:
        """The present slot's picture and what goes with it."""
        plan, settings = self._plan, self._settings
        slot, events = plan.slot, list[Event]()
        passed_over = not self._behind and now_ns - self._timeline.due(slot) > AHEAD * SLOT_NS
        planned = plan.take(slot)
        spoken = planned.spoken
        if spoken is not None and planned.flags & Flag.FIRST:
            spoken.shown = True
            events.append(Started(spoken.number))
        if spoken is not None:
            left_out = planned.skipped + planned.left_out
            spoken.left_out += left_out
            self.left_out += left_out
        if planned.left_out:
            return [replace(self._picture(slot, planned), left_out=True)]
        own = planned.job == 0 and planned.share == 0 and settings.own_ready()
        missing = planned.jpeg is None and not own and not planned.unseen
        if spoken is not None:
            late = missing or passed_over
            spoken.dropped += late
            self.late += late
            self._late_in_a_row = self._late_in_a_row + 1 if late else 0
            if self._late_in_a_row >= LATE_IN_A_ROW:
                self._slow_down()
        rests = planned.share == 0 and spoken is None
        left_out = passed_over or (rests and (not settings.idle or slot % settings.stride() > 0))
        if not left_out:
            events.append(
                self._repeated(slot, planned) if missing else self._picture(slot, planned)
            )
        if not missing:
            plan.last_shown = None if planned.unseen else planned
        if spoken is not None and planned.flags & Flag.LAST:
            frames = spoken.sound.frames or 0
            ended = Ended(spoken.number, frames, spoken.dropped, spoken.quiet, spoken.left_out)
            events.append(ended)
            self._utterances.remove(spoken)
        return events

    def _slow_down(self) -> None:
        """Engines take longer than the margin: move all that comes back, once, by the rest."""
        more = self._settings.margin_ns() - self._plan.margin_ns
        if more > 0:
            self._plan.margin_ns += more
            self._timeline.slow_down(more)
            self._late_in_a_row = 0

    def _picture(self, slot: int, planned: Planned) -> Picture:
        due = self._timeline.due(slot)
        return Picture(
            slot,
            due - self._timeline.begun_ns,
            planned.avatar_frame,
            planned.flags,
            planned.spoken.number if planned.spoken is not None else 0,
            planned.jpeg,
            planned.box,
            planned.frame,
            due - self._plan.margin_ns,
            planned.job,
            skipped=planned.skipped,
            unseen=planned.unseen,
            appearance=self._plan.appearance,
        )

    def _repeated(self, slot: int, planned: Planned) -> Picture:
        """The last picture again, or the avatar's own one where there is none."""
        before = self._plan.last_shown or Planned(planned.avatar_frame, 0.0)
        return self._picture(
            slot,
            replace(
                planned,
                avatar_frame=before.avatar_frame,
                jpeg=before.jpeg,
                box=before.box,
                job=0,
                flags=planned.flags | Flag.REPEATED,
            ),
        )
