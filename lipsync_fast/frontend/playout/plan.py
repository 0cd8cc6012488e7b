# SPDX-License-Identifier: Apache-2.0
"""What a live session will show, slot by slot, and what must be made for it.

    utterances ─► extend: the next slots ─► jobs
                        │
                        ▼
               planned slots ─► LivePlayout shows them

The plan gives slots to what is known: frames of utterances and their way in, the mouth on its way
out, rest. It looks ``AHEAD`` slots ahead; what it has planned may be taken back until it is shown.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import MIN_SAMPLES, AudioWindow
from lipsync_fast.frontend.playout.cached_start import CACHED_MARGIN_NS, KEEP_NS, CachedStart
from lipsync_fast.frontend.playout.playout import Appearance, Flag
from lipsync_fast.frontend.playout.slots import BEAT_NS, Planned, Spoken, Timeline
from lipsync_fast.frontend.playout.utterance_lookup import UtteranceLookup
from lipsync_fast.ipc.messages import Job, Speech, StoreMode
from lipsync_fast.timing import NS_PER_S, SAMPLE_RATE, SLOT_NS
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
NOTHING = np.zeros(0, np.float32)
NO_STREAM = 0
"""The stream of no utterance: those of a front are numbered from 1."""
SILENCE = np.zeros(MIN_SAMPLES, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """What a live session is given when it begins; callables are asked whenever it matters.

    Attributes:
        number: of the session in its front.
        new_stream: gives each utterance a number of its own in this front.
        own_ready: whether the avatar's own pictures are at hand in the look; else they are asked
            of the engine.
        idle: show the avatar between utterances too.
        margin_ns: MARGIN_NS, or what engines need now.
        hold_ns: see HOLD_NS.
        stride: of the slots in which nothing is said, one in so many is shown.
        speech_stride: of the frames that are said, one in so many is made.
        pictures: whether anybody sees them now; else slots go by, and nothing is asked for.
        lookup: what was said before; None where nothing is kept.
    """

    number: int
    new_stream: Callable[[], int]
    own_ready: Callable[[], bool]
    idle: bool = True
    margin_ns: Callable[[], int] = lambda: MARGIN_NS
    hold_ns: int = HOLD_NS
    stride: Callable[[], int] = lambda: 1
    speech_stride: Callable[[], int] = lambda: 1
    pictures: Callable[[], bool] = lambda: True
    lookup: UtteranceLookup | None = None


class Plan:
    """The slots of a live session that are not shown yet.

    Its methods are the steps in which one slot is filled; all of them move the same few numbers.

    Attributes:
        timeline: when slots are due.
        utterances: those that are not all shown, in their order.
        jobs: to be sent, with the samples that they see.
        slots: what they are to show, by their numbers, as far as that is planned.
        by_job: those of them whose answer is still wanted, by the job's number.
        change: another appearance, from the next moment on in which nothing is spoken.
        slot: to be shown next; raised by who shows it.
        share: how much of the generated mouth the slot shown last has shown.
        last_shown: the last one that had its picture, set by who shows it; None where nothing that
            is to be seen again was shown.
        margin_ns: from the moment that the sound of the present utterance's frames is there to
            their slots.
        epoch: raised by ``interrupt``.
    """

    def __init__(self, settings: LiveSettings, appearance: Appearance, now_ns: int) -> None:
        self._settings = settings
        self.appearance = appearance
        self.change: Appearance | None = None
        self.timeline = Timeline(now_ns)
        self.utterances: deque[Spoken] = deque()
        self.jobs: deque[tuple[Job, F32]] = deque()
        self.slots: dict[int, Planned] = {}
        self.by_job: dict[int, Planned] = {}
        self.last_shown: Planned | None = None
        self.slot, self.share, self.epoch = 0, 0.0, 0
        self.margin_ns = settings.margin_ns()
        self._cached_start = CachedStart(settings.lookup, settings.idle)
        self._lead = LEAD if settings.idle else 0
        """Slots over which the mouth is drawn in."""
        self._next = 0
        """To be planned next."""
        self._numbers = itertools.count(1)
        self._last_speech: tuple[Speech, F32] | None = None
        self._hold_until_ns = 0
        """Until when pictures are waited for, since an engine was lost. Engines take jobs of one
        deadline as they come, so none is overtaken by one that is shown behind it."""
        self._loop_offset = 0
        """From a slot's number to its position in the loop."""

    # ------------------------------------------------------------ looking at it
    def avatar_frame(self, slot: int) -> int:
        """The avatar's frame that a slot is shown over."""
        return self.appearance.manifest.avatar_frame(slot + self._loop_offset)

    def begin_ns(self, spoken: Spoken) -> int | None:
        """When to begin (again) with an utterance; None while that cannot be said."""
        if spoken.under_way or spoken.planned:
            return None
        if spoken.decided:
            return spoken.arrived_ns
        if spoken.next > 0 or not self._lead or spoken.sound.samples == 0:
            return None
        missing = self.appearance.manifest.audio.lookahead_samples - spoken.sound.samples
        decided = spoken.arrived_ns + max(0, missing) * NS_PER_S // SAMPLE_RATE
        return max(spoken.arrived_ns, decided - self._lead * SLOT_NS)

    # ------------------------------------------------------------ changing it
    def extend(self, now_ns: int) -> None:
        """Give slots to what is known now, and ask for it."""
        self._apply_change()
        self._next = max(self._next, self.slot)
        # What nobody sees is planned as late as can be: seen again, it is asked for from there on.
        ahead = AHEAD if self._settings.pictures() else 1
        horizon = max(self.slot, self.timeline.slot_at(now_ns)) + ahead
        while self._next < horizon:
            spoken = next((u for u in self.utterances if not u.planned), None)
            if spoken is not None and not spoken.under_way:
                begin = self.begin_ns(spoken)
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

    def take(self, slot: int) -> Planned:
        """What a slot shows, now that it has come; its answer is wanted no more."""
        planned = self.slots.pop(slot, None) or Planned(self.avatar_frame(slot), self.share)
        self.by_job.pop(planned.job, None)
        self.share = planned.share
        self.timeline.shown()
        return planned

    def interrupt(self) -> None:
        """Take back all that is to be said: jobs that were sent are void."""
        self.epoch += 1
        self.utterances.clear()
        self.jobs.clear()
        self._drop_from(self.slot)
        self.by_job.clear()
        self.last_shown = None  # what stands in for a late picture is the avatar's own

    def hold(self, planned: Planned, deadline_ns: int, now_ns: int) -> int:
        """The engine that was to make a slot's picture is lost: it is waited for longer.

        Returns:
            The job's new deadline.
        """
        if not planned.lost:
            planned.lost = True
            self._hold_until_ns = max(self._hold_until_ns, now_ns + self._settings.hold_ns)
            planned.hold_until_ns = max(deadline_ns, self._hold_until_ns)
        return planned.hold_until_ns

    def _apply_change(self) -> None:
        if self.change is None or self.utterances:
            return
        self.appearance, self.change = self.change, None
        self._drop_from(self.slot)
        self.last_shown, self._last_speech, self.share, self._loop_offset = None, None, 0.0, 0

    def _drop_from(self, slot: int) -> None:
        """Take back what was planned for a slot and those behind it."""
        for number in [n for n in self.slots if n >= slot]:
            self.by_job.pop(self.slots.pop(number).job, None)
        self._next = min(self._next, slot)

    # ------------------------------------------------------------ beginnings
    def _begin(self, spoken: Spoken, begin_ns: int, now_ns: int) -> None:
        """Choose the first slot of an utterance's way in, ``margin`` from its beginning."""
        if spoken.frames_wait and self._begin_at_once(spoken, now_ns):
            return
        spoken.under_way = True
        spoken.drift.begin()
        self.margin_ns = self._settings.margin_ns()
        if now_ns - begin_ns > self.margin_ns // 4:
            begin_ns = now_ns
        wanted = begin_ns + self.margin_ns
        slot = max(self.slot, self.timeline.slot_at(wanted))
        said = [n for n, p in self.slots.items() if p.spoken is not None]
        if said:
            slot = max(slot + 1, max(said) + 1)
        elif not self.timeline.try_move(max(0, wanted - self.timeline.due(slot))):
            slot += 1
        self._rest_until(slot, now_ns)

    def _begin_at_once(self, spoken: Spoken, now_ns: int) -> bool:
        """Begin with frames that are kept, in the first slot from now on, which is moved to now."""
        if not self._cached_start.possible:
            return False
        slot = max(self.slot, self.timeline.slot_from(now_ns))
        for planned in self.slots.values():
            if planned.spoken is not None and planned.spoken is not spoken:
                return False  # another one is on its way
        if self._share_before(slot) > NO_SHARE:
            return False
        spoken.asked = True
        position = slot + self._loop_offset
        found = self._cached_start.at_once(spoken.sound, self.appearance, position)
        if found is None:
            return False
        self._rest_until(slot, now_ns)
        # Less than a slot, to either side.
        self.timeline.move(now_ns + CACHED_MARGIN_NS - self.timeline.due(slot))
        self.margin_ns = CACHED_MARGIN_NS
        self._loop_offset = found.loop_position - slot
        spoken.under_way, spoken.next, spoken.at_once = True, 0, True
        spoken.store = found.store
        return True

    def _rest_until(self, slot: int, now_ns: int) -> None:
        """Plan nothing but rest before a slot, with which something begins."""
        self._drop_from(slot)
        while self._next < slot and self._plan_rest(now_ns, everything=True):
            pass

    # ------------------------------------------------------------ the next slot
    def _share_before(self, slot: int) -> float:
        before = self.slots.get(slot - 1)
        return before.share if before is not None else self.share

    def _plan_speech(self, spoken: Spoken, now_ns: int) -> bool:
        """Plan the next slot of an utterance: of its way in, or its next frame."""
        slot = self._next
        share = self._share_before(slot) if self._lead else 1.0
        if spoken.at_once:
            share = min(1.0, share + STEP_IN)
        elif share < 1 - NO_SHARE and not (self.timeline.due(slot) <= now_ns and spoken.decided):
            if spoken.next > 0 and self._last_speech is not None:
                speech, samples = self._last_speech
            else:
                appearance = self.appearance
                store, audio = self._cached_start.lead_in(appearance), appearance.manifest.audio
                speech, samples = before_sound(spoken.sound.stream, store, audio)
            share = share + STEP_IN
            if share < 1 - NO_SHARE:
                faded = msgspec.structs.replace(speech, share=share)
                self._ask(Planned(0, share), faded, samples, now_ns)
                return True
        if not spoken.decided:
            if self.timeline.due(slot) > now_ns:
                return False
            # Under-run: rest, and let what follows move back.
            spoken.under_way = spoken.at_once = False
            return True
        frame, frames = spoken.next, spoken.sound.frames
        if frame == 0 and not spoken.at_once:
            position = slot + self._loop_offset
            found = self._cached_start.in_step(spoken.sound, self.appearance, position)
            if found is not None:
                spoken.store, self._loop_offset = found.store, found.loop_position - slot
        flags = Flag.NONE
        if frame > 0 and frames is None and spoken.drift.leaves_out(spoken.sound.loudness(frame)):
            spoken.skipped += 1
            self._go_on(spoken)
            return True
        if frame == 0:
            flags |= Flag.FIRST
        if frames is not None and frame == frames - 1:
            flags |= Flag.LAST
        if not spoken.at_once:
            share = 1.0
        if not flags and self._is_left_out(spoken):
            self._place(Planned(0, share, flags, spoken, frame, left_out=True))
            self._go_on(spoken)
            return True
        speech, samples = spoken.sound.speech(frame, share, spoken.store)
        self._last_speech = speech, samples
        self._ask(Planned(0, share, flags, spoken, frame), speech, samples, now_ns)
        if not spoken.at_once:
            self._keep_lead_in(speech, samples, slot, now_ns)
        self._go_on(spoken)
        return True

    @staticmethod
    def _go_on(spoken: Spoken) -> None:
        """Its next frame is dealt with."""
        spoken.next += 1
        spoken.sound.forget(spoken.next)

    def _is_left_out(self, spoken: Spoken) -> bool:
        """Whether the next frame is not made, since engines cannot make all; what is kept costs
        them nothing."""
        stride = self._settings.speech_stride()
        return spoken.next % stride > 0 and spoken.store != StoreMode.LOOK_UP

    def _plan_rest(self, now_ns: int, everything: bool = False) -> bool:
        """Plan a slot without speech: the mouth on its way back, or the avatar's own picture."""
        slot, settings = self._next, self._settings
        share = self._share_before(slot) - STEP_OUT
        if share > NO_SHARE and self._last_speech is not None and self._lead:
            speech, samples = self._last_speech
            faded = msgspec.structs.replace(speech, share=share)
            self._ask(Planned(0, share), faded, samples, now_ns)
            return True
        avatar_frame, due = self.avatar_frame(slot), self.timeline.due(slot)
        if due <= now_ns or everything:
            pass
        elif slot >= self.slot + IDLE_AHEAD or not settings.idle or settings.own_ready():
            return False
        if settings.idle and not settings.own_ready() and slot % settings.stride() == 0:
            self._ask(Planned(avatar_frame, 0.0), None, NOTHING, now_ns)
        else:
            if not self.utterances and not self.slots:
                self.timeline.try_move(-due % BEAT_NS)
            self.slots[slot] = Planned(avatar_frame, 0.0)
            self._next += 1
        return True

    def _place(self, planned: Planned) -> None:
        """Give the next slot to a picture."""
        planned.avatar_frame = self.avatar_frame(self._next)
        self.slots[self._next] = planned
        self._next += 1
        if planned.spoken is not None:
            planned.skipped, planned.spoken.skipped = planned.spoken.skipped, 0

    # ------------------------------------------------------------ asking for it
    def _ask(self, planned: Planned, speech: Speech | None, samples: F32, now_ns: int) -> None:
        """Give the next slot to a picture, and ask for it unless it is too late for that, or
        nobody sees it."""
        slot, due = self._next, self.timeline.due(self._next)
        planned.unseen = not self._settings.pictures()
        self._place(planned)
        if planned.unseen:
            return
        if due <= now_ns:
            if planned.spoken is None:  # what is shown again has its own share
                planned.share = self._share_before(slot)
            return
        planned.job = next(self._numbers)
        self.by_job[planned.job] = planned
        deadline_ns = due + GRACE_NS
        if now_ns < self._hold_until_ns:  # the next engine has to catch up: these wait for it, too
            planned.hold_until_ns = deadline_ns = max(deadline_ns, self._hold_until_ns)
        self._send(planned.job, planned.avatar_frame, deadline_ns, speech, samples)

    def _keep_lead_in(self, speech: Speech, samples: F32, slot: int, now_ns: int) -> None:
        """Have a first frame made as it leads in, too, for when this sound is said again."""
        wanted = self._cached_start.lead_in_to_keep(speech)
        if wanted is not None and self._settings.pictures():
            number = next(self._numbers)
            self._send(number, self.avatar_frame(slot), now_ns + KEEP_NS, wanted, samples)

    def _send(
        self, number: int, avatar_frame: int, deadline_ns: int, speech: Speech | None, samples: F32
    ) -> None:
        appearance = self.appearance
        job = Job(
            self._settings.number,
            self.epoch,
            number,
            appearance.avatar,
            avatar_frame,
            deadline_ns,
            appearance.look,
            speech,
        )
        self.jobs.append((job, samples))


def before_sound(stream: int, store: StoreMode, audio: AudioWindow) -> tuple[Speech, F32]:
    """What a mouth shows of an utterance before any of it is known: vectors of zeros, or of silence
    where the networks never see zeros."""
    if audio.padded:
        return Speech(stream, -audio.after, None, 0, store=store), NOTHING
    return Speech(NO_STREAM, 0, len(SILENCE), 0, store=store), SILENCE
