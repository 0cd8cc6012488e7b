# SPDX-License-Identifier: Apache-2.0
"""Speech of any level made equally loud, as it streams: a proposal for the product's front.

Below about -40 dB most of the mel rows' range lies under their floor, and no training can bring
back what is clipped there; a gain before them can. ``Leveller`` looks at nothing that comes later
and works in blocks of 10 ms counted from the start, so that the pieces in which sound is pushed
change nothing: streaming equals offline. evaluate_hearing.py measures what it is worth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
BLOCK = 160
"""Samples that have one gain at their end; in between it moves linearly."""
TARGET_DB = -15.0
"""Where the loudest blocks of speech are taken to (mean square, 0 is full scale)."""
LEAST_DB, MOST_DB = -12.0, 50.0
"""Bounds of the gain."""
FALL_DB = 0.015
"""How much the loudest block is forgotten with each block of speech: 1.5 dB a second."""
RISE_DB = 0.03
"""How fast the floor follows where it gets louder: 3 dB a second."""
ABOVE_DB = 10.0
"""Speech is so far above the floor, and not farther than RANGE_DB below the loudest block."""
RANGE_DB = 25.0
STEP_DB = 1.0
"""The gain changes by so much a block at most, but for falling before something would clip."""
QUIET_DB = -85.0


class Leveller:
    """A gain that follows the level of speech, and stays as it is in pauses."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)
        self._floor_db, self._loudest_db = 0.0, -np.inf
        self._gain_db = 0.0

    def push(self, pcm: F32) -> F32:
        """The sound of all blocks that are complete now."""
        pcm = np.concatenate([self._rest, pcm])
        count = len(pcm) // BLOCK
        self._rest = pcm[count * BLOCK :]
        blocks = [self._levelled(b) for b in pcm[: count * BLOCK].reshape(count, BLOCK)]
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def finish(self) -> F32:
        """What is left, with the last gain."""
        out: F32 = (self._rest * np.float32(10 ** (self._gain_db / 20))).astype(np.float32)
        self._rest = np.zeros(0, np.float32)
        return out

    def _levelled(self, block: F32) -> F32:
        db = 10 * np.log10(float(np.mean(block.astype(np.float64) ** 2)) + 1e-12)
        before = self._gain_db
        self._floor_db = min(max(db, QUIET_DB), self._floor_db + RISE_DB)
        if db > max(self._floor_db + ABOVE_DB, self._loudest_db - RANGE_DB, QUIET_DB):
            self._loudest_db = max(db, self._loudest_db - FALL_DB)
            wanted = np.clip(TARGET_DB - self._loudest_db, LEAST_DB, MOST_DB)
            self._gain_db += float(np.clip(wanted - before, -12.0, STEP_DB))
        gains = np.linspace(before, self._gain_db, BLOCK + 1)[1:]
        out: F32 = np.clip(block * 10 ** (gains / 20), -1, 1).astype(np.float32)
        return out


def levelled(pcm: F32) -> F32:
    """A whole recording."""
    leveller = Leveller()
    return np.concatenate([leveller.push(pcm), leveller.finish()])
