# SPDX-License-Identifier: Apache-2.0
"""Automatic gain control: speech of any level made equally loud, as it streams.

Below about -40 dB most of the mel rows' range lies under their floor, and a network never hears
what is clipped there; so a gain stands before them, for avatars whose manifest asks for it
(``audio.windows.AudioWindow.gain``). It looks at nothing that comes later, and works in blocks of
10 ms counted from the sound's beginning: the pieces in which sound is pushed change nothing, so
that a stream's pictures are a recording's.
"""

from __future__ import annotations

import math

import numpy as np

from lipsync_fast.arrays import F32
from lipsync_fast.timing import SAMPLE_RATE

BLOCK = SAMPLE_RATE // 100
"""Samples of a block, at whose end the gain has a new value; in between it moves evenly."""
TARGET_DB = -28.0
"""Where the loudest blocks of speech are taken to (mean square; 0 is full scale)."""
LEAST_DB, MOST_DB = -25.0, 30.0
"""Bounds of the gain."""
FORGET_DB = 0.015
"""How much the loudest block is forgotten with each block of speech: 1.5 dB a second."""
FLOOR_RISE_DB = 0.03
"""How fast the floor of noise follows where it gets louder: 3 dB a second."""
ABOVE_DB = 10.0
"""Speech is so far above the floor, and not farther than RANGE_DB below the loudest block."""
RANGE_DB = 25.0
QUIET_DB = -60.0
"""What is below is no speech, whatever is around it: a breath, a click, a device's noise."""
RISE_DB, FALL_DB = 1.0, 12.0
"""What the gain changes by in a block, at most: fast only where something would be too loud."""
_EMPTY = np.zeros(0, np.float32)


class AutomaticGain:
    """A gain that follows the level of speech, and stays as it is in pauses.

    All sound is 16 kHz mono float32 in [-1, 1].
    """

    def __init__(self) -> None:
        self._rest = _EMPTY
        self._floor_db, self._loudest_db = 0.0, -math.inf
        self._gain_db = 0.0

    def push(self, pcm: F32) -> F32:
        """More sound; gives that of all blocks that are complete now."""
        if len(self._rest):
            pcm = np.concatenate([self._rest, pcm])
        count = len(pcm) // BLOCK
        self._rest = pcm[count * BLOCK :].copy()
        if not count:
            return _EMPTY
        blocks = pcm[: count * BLOCK].reshape(count, BLOCK)
        levels = np.mean(np.square(blocks, dtype=np.float64), axis=1)
        gains_db = [self._gain_db, *(self._follow(level) for level in levels.tolist())]
        gains = 10.0 ** (np.array(gains_db) / 20)
        parts = np.arange(1, BLOCK + 1) / BLOCK
        steps = gains[:-1, None] + (gains[1:] - gains[:-1])[:, None] * parts
        out: F32 = np.clip(blocks * steps, -1, 1).astype(np.float32).reshape(-1)
        return out

    def finish(self) -> F32:
        """The sound has ended; gives the rest of it, less than a block, with the last gain."""
        rest, self._rest = self._rest, _EMPTY
        gain = np.float32(10.0 ** (self._gain_db / 20))
        out: F32 = np.clip(rest * gain, -1, 1).astype(np.float32)
        return out

    def _follow(self, level: float) -> float:
        """The gain at the end of a block of that mean square, in dB."""
        db = 10 * math.log10(level + 1e-12)
        self._floor_db = min(max(db, QUIET_DB - ABOVE_DB), self._floor_db + FLOOR_RISE_DB)
        if db > max(self._floor_db + ABOVE_DB, self._loudest_db - RANGE_DB, QUIET_DB):
            self._loudest_db = max(db, self._loudest_db - FORGET_DB)
            wanted = min(max(TARGET_DB - self._loudest_db, LEAST_DB), MOST_DB)
            self._gain_db += min(max(wanted - self._gain_db, -FALL_DB), RISE_DB)
        return self._gain_db


class NoGain:
    """Sound as it comes."""

    def push(self, pcm: F32) -> F32:
        """The same."""
        return pcm

    def finish(self) -> F32:
        """Nothing is left."""
        return _EMPTY


def levelled(pcm: F32) -> F32:
    """A whole sound."""
    gain = AutomaticGain()
    return np.concatenate([gain.push(pcm), gain.finish()])
