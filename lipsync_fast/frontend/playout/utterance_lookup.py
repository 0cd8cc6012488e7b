# SPDX-License-Identifier: Apache-2.0
"""What a session asks when an utterance begins: was it said before, and where in the loop?

    first frames of an utterance ─► are they kept? over which pictures? ─► where to begin in
                                                          the loop, and what engines look for

Who answers is given from outside (``frontend/kept_utterances.py``): nothing is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lipsync_fast.arrays import F32
from lipsync_fast.frontend.playout.playout import Appearance
from lipsync_fast.ipc.messages import Speech, StoreMode

Move = Literal["never", "alike", "anywhere"]
"""Whether an utterance may begin over another picture than the one that is due."""
FIRST_FRAMES = 8
"""Frames of an utterance that are looked for when it begins: as many as are asked for before they
are due, so those behind them have their usual time, found or not."""
MISSES = 4
"""Frames in a row that engines did not find, after which they look no more."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How an utterance begins.

    Attributes:
        store: for ``Speech.store`` of its frames.
        loop_position: under its first frame.
        at_once: its first frames are kept as they lead in: no engine has to make them.
    """

    store: StoreMode
    loop_position: int
    at_once: bool = False


class LookedFor(Protocol):
    """An utterance whose frames may be looked for.

    Attributes:
        store: ``Speech.store`` of its frames.
        missed: frames in a row that were looked for in vain.
    """

    store: StoreMode
    missed: int


def note_answer(spoken: LookedFor, kept: bool) -> None:
    """A frame of an utterance was made, or was there: after a few in vain, none is looked for."""
    spoken.missed = 0 if kept else spoken.missed + 1
    if spoken.store == StoreMode.LOOK_UP and spoken.missed >= MISSES:
        spoken.store = StoreMode.KEEP


class UtteranceLookup(Protocol):
    """Knows what was said before."""

    @property
    def lead_in(self) -> StoreMode:
        """``Speech.store`` for frames that are shown before a sound is known."""
        ...

    def look_up(
        self,
        appearance: Appearance,
        seen: Sequence[tuple[Speech, F32]],
        loop_position: int,
        move: Move,
        at_once: bool,
        leads: bool = True,
    ) -> Beginning:
        """How an utterance is to begin.

        Args:
            appearance: what it is shown as.
            seen: what its first frames see, up to ``FIRST_FRAMES``.
            loop_position: where in the loop it would begin.
            move: whether it may begin elsewhere.
            at_once: whether it is only asked if it can begin without the engines' usual time.
            leads: the mouth is drawn to the first frames.
        """
        ...
