# SPDX-License-Identifier: Apache-2.0
"""What live.py plans with: utterances on their way, and what a slot is to show."""

from __future__ import annotations

from dataclasses import dataclass

from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.frontend.playout.frame_cache import FIRST_FRAMES
from lipsync_fast.frontend.playout.playout import Flag
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Look, StoreMode


@dataclass(slots=True)
class Spoken:
    """An utterance on its way through the slots."""

    number: int
    sound: Utterance
    heard_ns: int
    """When its last sound came."""
    next: int = 0
    """Frame to be planned next."""
    under_way: bool = False
    """Slots are given to its frames one after the other; else it waits for ``_begin``."""
    dropped: int = 0
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

    index: int
    share: float
    """Of the generated mouth."""
    flags: Flag = Flag.IDLE
    spoken: Spoken | None = None
    frame: int | None = None
    job: int = 0
    jpeg: bytes | None = None
    box: Rect | None = None
    failed: bool = False
    held_ns: int = 0
    """Worth waiting for up to then: an engine was lost."""
    lost: bool = False
    """It was the one that was to make this; the next one's loss gives no more time."""


@dataclass(slots=True)
class Change:
    """Another avatar or look, for when nothing is spoken."""

    manifest: Manifest
    name: str
    look: Look
