# SPDX-License-Identifier: Apache-2.0
"""How an utterance of a live session begins where it, or its beginning, was said before.

Decisions only: each is a value, and the plan that asked for it acts on it.
"""

from __future__ import annotations

import msgspec

from lipsync_fast.frontend.playout.playout import Appearance
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.frontend.playout.utterance_lookup import (
    FIRST_FRAMES,
    Beginning,
    Move,
    UtteranceLookup,
)
from lipsync_fast.ipc.messages import Speech, StoreMode
from lipsync_fast.utterances.transitions import LEAD, blended

CACHED_MARGIN_NS = 8_000_000
"""From the moment that an utterance's sound is there to its first slot, where its frames are kept
and need no network."""
KEEP_NS = 10_000_000_000
"""How long engines may take for what is only to be kept."""


class CachedStart:
    """Decides for one session.

    Args:
        lookup: what was said before; None where nothing is kept.
        idle: the avatar is seen between utterances, and its mouth is drawn to the first frames.
    """

    def __init__(self, lookup: UtteranceLookup | None, idle: bool) -> None:
        self._lookup, self._leads = lookup, idle
        self._move: Move = "alike" if idle else "anywhere"
        """Where else in its loop the avatar may begin to speak; unseen, it may anywhere."""

    @property
    def possible(self) -> bool:
        """Something may have been kept."""
        return self._lookup is not None

    def lead_in(self, appearance: Appearance) -> StoreMode:
        """``Speech.store`` for frames that are shown before a sound is known."""
        off = self._lookup is None or not appearance.kept
        return StoreMode.OFF if off or self._lookup is None else self._lookup.lead_in

    def at_once(
        self, sound: Utterance, appearance: Appearance, loop_position: int
    ) -> Beginning | None:
        """How an utterance begins with frames that are kept; None where they are not.

        Args:
            loop_position: of the first slot that it could have.
        """
        if self._lookup is None or not appearance.kept:
            return None
        found = self._lookup.look_up(
            appearance, sound.seen(FIRST_FRAMES), loop_position, self._move, True, self._leads
        )
        return found if found.at_once else None

    def in_step(
        self, sound: Utterance, appearance: Appearance, loop_position: int
    ) -> Beginning | None:
        """How an utterance begins in the slot that it has, before its first frame is asked for:
        was it said before, and over which pictures? None where nothing is kept."""
        if self._lookup is None or not appearance.kept:
            return None
        seen = sound.seen(FIRST_FRAMES)
        return self._lookup.look_up(appearance, seen, loop_position, self._move, False)

    def lead_in_to_keep(self, speech: Speech) -> Speech | None:
        """A first frame as it leads in, to be made too for when this sound is said again; None for
        frames of which that is not wanted."""
        if speech.store == StoreMode.OFF or not self._leads or speech.frame >= LEAD:
            return None
        return msgspec.structs.replace(speech, share=blended(speech.frame), store=StoreMode.LOOK_UP)
