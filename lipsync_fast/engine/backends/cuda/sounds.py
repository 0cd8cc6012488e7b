# SPDX-License-Identifier: Apache-2.0
"""Audio vectors on the device: each computed once, found by all frames that see it.

A vector is known by its avatar (whose encoder made it), its sound, and the mel row at which its
window begins. A batch brings the samples of those windows only that are missing; frames that follow
each other in a sound miss one each, where as many as sixteen are seen.

    slot 0              zeros, for padding outside of a sound
    slots 1 .. count-1  vectors; the table is one tensor, so a batch is one gather

It holds no truth: a vector that was given up is computed again, from samples that each job brings.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lipsync_fast.audio.windows import FEATURE_SIZE, HALF, HOP, WINDOW_ROWS
from lipsync_fast.engine.backends.base import Sound
from lipsync_fast.engine.backends.cuda.slots import Slots

COUNT = 1 << 15
"""Vectors that are kept: those that 1,000 live sounds see, twice; 32 MB."""
ZEROS = 0
PAD = HALF
"""Samples before the first piece, so that no window begins before the array."""
Key = tuple[Hashable, Hashable, int]


@dataclass(slots=True)
class Heard:
    """What a batch needs of its sounds.

    Attributes:
        index: for each frame, the slots of its vectors.
        made: keys that are new, and ``slots`` that are to be filled with them.
        windows: for each of them, where it begins in ``samples``, the first and the end of what is
            read there, and whether there is one sample more before.
        samples: pieces of the sounds, to be laid one behind the other after ``PAD`` samples.
    """

    index: list[list[int]] = field(default_factory=list)
    made: list[Key] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    windows: list[tuple[int, int, int, int]] = field(default_factory=list)
    samples: list[NDArray[np.float32]] = field(default_factory=list)
    end: int = PAD

    def add(self, sound: Sound, starts: Sequence[int]) -> None:
        """Bring the samples of missing windows, given by their first rows in order."""
        first = max(0, HOP * starts[0] - HALF - 1)
        end = HOP * (starts[-1] + WINDOW_ROWS - 1) + HALF
        piece = sound.pcm[first - sound.first : end - sound.first]
        base, self.end = self.end, self.end + len(piece)
        before = int(first > 0)
        self.samples.append(piece)
        for start in starts:
            offset = base + HOP * start - HALF - first
            self.windows.append((offset, base + before, self.end, before))


class Sounds:
    """The vectors of all avatars' sounds; one thread.

    Args:
        where: the device of torch.
        dtype: of the networks.
        count: slots, the zeros included.
    """

    def __init__(self, where: torch.device, dtype: torch.dtype, count: int = COUNT) -> None:
        self.table = torch.zeros(count, FEATURE_SIZE, dtype=dtype, device=where)
        self._slots = Slots(count - 1, first=1)

    @property
    def used(self) -> int:
        """Bytes of the vectors that are kept."""
        return len(self._slots) * FEATURE_SIZE * self.table.element_size()

    def plan(
        self,
        frames: Sequence[tuple[Hashable, Sound | None]],
        batch: int,
        ended: int,
        vectors: int = 16,
    ) -> Heard:
        """What a batch needs, up to the first frame whose vectors have no room now.

        Args:
            frames: each one's avatar and sound; without a sound, the index says zeros.
            batch: its number.
            ended: all batches up to this one have ended.
            vectors: that each frame sees.

        Returns:
            Its ``index`` is shorter than ``frames`` where room was missing; the vectors that it
            names are to be there when ``batch`` has been put on the device, or ``undo`` is called.
        """
        heard, slots = Heard(), self._slots
        for avatar, sound in frames:
            if sound is None:
                heard.index.append([ZEROS] * vectors)
                continue
            stream = sound.stream
            row: list[int] = []
            missing: list[int] = []
            for start in sound.starts:
                if start < 0:
                    row.append(ZEROS)
                    continue
                key = (avatar, stream, start)
                slot = slots.find(key, batch)
                if slot is None:
                    slot = slots.take(key, batch, ended)
                    if slot is None:
                        self._drop(heard, len(missing))
                        return heard
                    missing.append(start)
                    heard.made.append(key)
                    heard.slots.append(slot)
                row.append(slot)
            if missing:
                heard.add(sound, missing)
            heard.index.append(row)
        return heard

    def undo(self, heard: Heard) -> None:
        """Forget what a batch was to fill, and has not."""
        self._drop(heard, len(heard.made))

    def forget(self, avatar: Hashable) -> None:
        """Drop what is kept of an avatar."""
        self._slots.forget(lambda key: isinstance(key, tuple) and key[0] == avatar)

    def _drop(self, heard: Heard, count: int) -> None:
        """Take the last so many new keys back."""
        for _ in range(count):
            self._slots.drop(heard.made.pop())
            heard.slots.pop()


def check(sound: Sound, vectors: int = 16) -> None:
    """Refuse a sound that does not hold what it says.

    Args:
        vectors: that a frame sees.

    Raises:
        ValueError: it has another number of vectors, or its samples begin too late or are none.
    """
    starts, pcm = sound.starts, sound.pcm
    if len(starts) != vectors:
        raise ValueError(f"a sound with {len(starts)} vectors, expected {vectors}")
    if pcm.dtype != np.float32 or pcm.ndim != 1:
        raise ValueError(f"samples of {pcm.dtype} and shape {pcm.shape}: expected float32")
    rows = [start for start in starts if start >= 0]
    if not rows:
        return
    if any(b < a for a, b in pairwise(rows)):
        raise ValueError(f"windows that begin at {rows}: expected in order")
    needed = max(0, HOP * rows[0] - HALF - 1)
    if not 0 <= sound.first <= needed:
        raise ValueError(f"samples from {sound.first} on, expected from {needed} or before")
    if sound.first + len(pcm) <= HOP * rows[-1] - HALF:
        raise ValueError(f"samples up to {sound.first + len(pcm)}: the last window sees none")
