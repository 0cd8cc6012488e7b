# SPDX-License-Identifier: Apache-2.0
"""The part of a live session that knows what was said before: where in its loop an utterance
begins, when, and what is to be kept of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from lipsync_fast.arrays import F32
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.frontend.playout.frame_cache import FIRST_FRAMES, Move, Recall
from lipsync_fast.frontend.playout.plan import Planned, Spoken
from lipsync_fast.ipc.messages import Job, Look, Speech, StoreMode
from lipsync_fast.timing import SLOT_NS
from lipsync_fast.utterances.transitions import LEAD, NO_SHARE, blended

KNOWN_MARGIN_NS = 8_000_000
"""The same for frames that are kept, and need no network."""
KEEP_NS = 10_000_000_000
"""How long engines may take for what is only to be kept."""


class Recalling:
    """What ``live.LiveSession`` has of it."""

    number: int
    epoch: int
    manifest: Manifest
    avatar: str
    look: Look
    idle: bool
    recall: Recall | None
    jobs: deque[tuple[Job, F32]]
    margin_ns: int
    _slot: int
    _next: int
    _origin_ns: int
    _shifted_ns: int
    _offset: int
    _planned: dict[int, Planned]
    _jobs: Iterator[int]

    if TYPE_CHECKING:

        @property
        def _lead(self) -> int: ...

        def _due(self, slot: int) -> int: ...

        def _share_before(self, slot: int) -> float: ...

        def _drop_from(self, slot: int) -> None: ...

        def _plan_rest(self, now_ns: int, everything: bool = False) -> bool: ...

    def _index(self, slot: int) -> int:
        """The avatar's picture that a slot is shown over."""
        return self.manifest.avatar_frame(slot + self._offset)

    @property
    def _may_move(self) -> Move:
        """Where else in its loop the avatar may begin to speak; unseen, it may anywhere."""
        return "alike" if self.idle else "anywhere"

    def _begin_at_once(self, spoken: Spoken, now_ns: int) -> bool:
        """Begin with frames that are kept, in the first slot from now on, which is moved to now."""
        if self.recall is None:
            return False
        slot = max(self._slot, -((self._origin_ns - now_ns) // SLOT_NS))
        for planned in self._planned.values():
            if planned.spoken is not None and planned.spoken is not spoken:
                return False  # another one is on its way
        if self._share_before(slot) > NO_SHARE:
            return False
        spoken.asked = True
        place = slot + self._offset
        seen = spoken.sound.seen(FIRST_FRAMES)
        found = self.recall.begin(
            self.avatar, self.manifest, self.look, seen, place, self._may_move, True, self._lead > 0
        )
        if not found.at_once:
            return False
        self._drop_from(slot)
        while self._next < slot and self._plan_rest(now_ns, everything=True):
            pass
        shift = now_ns + KNOWN_MARGIN_NS - self._due(slot)  # less than a slot, to either side
        self._origin_ns += shift
        self._shifted_ns += shift
        self.margin_ns = KNOWN_MARGIN_NS
        self._offset = found.place - slot
        spoken.under_way, spoken.next, spoken.at_once = True, 0, True
        spoken.store = found.store
        return True

    def _recognise(self, spoken: Spoken, slot: int) -> None:
        """Before its first frame is asked for: was it said before, and over which pictures?"""
        if self.recall is None:
            return
        seen = spoken.sound.seen(FIRST_FRAMES)
        found = self.recall.begin(
            self.avatar, self.manifest, self.look, seen, slot + self._offset, self._may_move, False
        )
        spoken.store, self._offset = found.store, found.place - slot

    def _keep_blended(self, speech: Speech, samples: F32, slot: int, now_ns: int) -> None:
        """Have a first frame made as it leads in, too, for when this sound is said again."""
        if speech.store == StoreMode.OFF or not self._lead or speech.frame >= LEAD:
            return
        wanted = msgspec.structs.replace(
            speech, share=blended(speech.frame), store=StoreMode.LOOK_UP
        )
        job = Job(
            self.number,
            self.epoch,
            next(self._jobs),
            self.avatar,
            self._index(slot),
            now_ns + KEEP_NS,
            self.look,
            wanted,
        )
        self.jobs.append((job, samples))
