# SPDX-License-Identifier: Apache-2.0
"""Slots of 40 ms: when each is due, what it is to show, and the utterances that go through them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lipsync_fast.frontend.playout.drift import Drift
from lipsync_fast.frontend.playout.playout import Flag
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.frontend.playout.utterance_lookup import FIRST_FRAMES
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import StoreMode
from lipsync_fast.timing import SLOT_NS

BEAT_NS = SLOT_NS // 4
"""Sessions that rest are shown on common beats: a front that serves hundreds wakes no more often
than there are beats. An utterance's slots lie where its sound wants them."""


class Timeline:
    """When slots are due: slot n at ``origin + 40 ms * n``; those to come may be moved back.

    Between two pictures they move by less than one slot in all (``try_move``), but for what is
    moved whatever it costs.

    Args:
        now_ns: the time, on CLOCK_MONOTONIC; the first slot is due on the beat before.
    """

    def __init__(self, now_ns: int) -> None:
        self.begun_ns = self._origin_ns = now_ns - now_ns % BEAT_NS
        self._moved_ns = 0
        """How far the slots were moved since the last picture."""

    def due(self, slot: int) -> int:
        """When a slot is shown."""
        return self._origin_ns + SLOT_NS * slot

    def slot_at(self, now_ns: int) -> int:
        """The slot that has come at a moment; below 0 before the first."""
        return (now_ns - self._origin_ns) // SLOT_NS

    def slot_from(self, now_ns: int) -> int:
        """The first slot that is not over before a moment."""
        return -((self._origin_ns - now_ns) // SLOT_NS)

    def try_move(self, by_ns: int) -> bool:
        """Move all slots back, where they have not been moved by a whole one with it."""
        if self._moved_ns + by_ns >= SLOT_NS:
            return False
        self.move(by_ns)
        return True

    def move(self, by_ns: int) -> None:
        """Move all slots back, or forward where ``by_ns`` is below 0."""
        self._origin_ns += by_ns
        self._moved_ns += by_ns

    def slow_down(self, by_ns: int) -> None:
        """Move all slots back for good: engines need more time."""
        self._origin_ns += by_ns

    def shown(self) -> None:
        """A slot was shown: those behind it may move again."""
        self._moved_ns = 0


@dataclass(slots=True)
class Spoken:
    """An utterance on its way through the slots."""

    number: int
    sound: Utterance
    arrived_ns: int
    """When its last sound came."""
    next: int = 0
    """Frame to be planned next."""
    under_way: bool = False
    """Slots are given to its frames one after the other; else it waits for its beginning."""
    dropped: int = 0
    left_out: int = 0
    """Frames that were not made, on purpose."""
    store: StoreMode = StoreMode.OFF
    """``Speech.store`` of its frames."""
    shown: bool = False
    """Its first frame was."""
    asked: bool = False
    """Whether it could begin at once."""
    at_once: bool = False
    """It begins at once: its first frames lead in."""
    missed: int = 0
    """Frames in a row that were looked for in vain."""
    quiet: bool = False
    """It was ended since no more sound came."""
    drift: Drift = field(default_factory=Drift)
    skipped: int = 0
    """Frames before the next one that have no slot: the client's clock is fast."""

    @property
    def frames_wait(self) -> bool:
        """It may be asked whether it can begin at once: its first frames are decided, and none of
        them was shown."""
        if self.asked or self.shown or not self.sound.decided:
            return False
        if self.next and (self.next > FIRST_FRAMES or self.sound.window.before < 4):
            return False  # what its first frame sees may be forgotten
        return self.sound.ended or self.sound.decided >= FIRST_FRAMES

    @property
    def planned(self) -> bool:
        """All of its frames have slots."""
        frames = self.sound.frames
        return frames is not None and self.next >= frames

    @property
    def decided(self) -> bool:
        """The sound that its next frame sees has come."""
        return self.sound.ended or self.next < self.sound.decided


@dataclass(slots=True)
class Planned:
    """What a slot is to show."""

    avatar_frame: int
    share: float
    """How much of the generated mouth is shown."""
    flags: Flag = Flag.IDLE
    spoken: Spoken | None = None
    frame: int | None = None
    job: int = 0
    jpeg: bytes | None = None
    box: Rect | None = None
    failed: bool = False
    hold_until_ns: int = 0
    """Worth waiting for up to then: an engine was lost."""
    left_out: bool = False
    """It is spoken, but no picture is made of it."""
    skipped: int = 0
    """Frames before it that have no slot."""
    unseen: bool = False
    """It was not asked for, since nobody saw pictures then."""
    lost: bool = False
    """It was the one that was to make this; the next one's loss gives no more time."""
