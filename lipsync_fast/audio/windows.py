# SPDX-License-Identifier: Apache-2.0
"""From a 16 kHz stream to the audio block of every video frame, as soon as each is decided.

Feature j reads mel rows [int(3.2 j), int(3.2 j) + 16); a window past the end is moved back to the
last 16 rows. There are F = int((M - 16) / 80 * 25) + 2 features for M rows; the first and the last
are repeated once, and frame i sees padded rows [i - before, i + after), zeros outside. A stream
gives the same blocks as the whole sound, whatever its pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lipsync_fast._native import MelStream
from lipsync_fast.audio import FRAME_SAMPLES
from lipsync_fast.avatars.manifest import AudioWindow

WINDOW_ROWS = 16
FEATURE_SIZE = 512
MIN_SAMPLES = 3_000
"""A shorter sound is followed by silence up to here, so that one mel window exists."""

Features = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Mel windows N x 16 x 80 to features N x 512."""


def first_row(feature: int) -> int:
    """First mel row of a feature's window."""
    return int(3.2 * feature)


def feature_count(rows: int) -> int:
    """Features of a sound with ``rows`` mel rows (16 or more)."""
    return int((rows - WINDOW_ROWS) / 80 * 25) + 2


def frame_count(samples: int) -> int:
    """Video frames of a sound: ceil(samples / 640)."""
    return -(-samples // FRAME_SAMPLES)


class BlockStream:
    """Audio blocks (16 x 512 float32) of the frames 0, 1, 2 … of a stream, in order.

    Args:
        window: which feature rows a frame sees.
        features: the audio encoder.

    Memory is bounded: only the mel rows and features that later frames still need are kept.
    """

    def __init__(self, window: AudioWindow, features: Features) -> None:
        self._window, self._features = window, features
        self._mel = MelStream()
        self._samples = 0
        self._rows = np.zeros((0, 80), np.float32)
        self._rows_start = 0
        self._vectors: list[NDArray[np.float32]] = []
        self._vectors_start = 0
        self._next_feature = 0
        self._next_frame = 0

    @property
    def samples(self) -> int:
        """Samples pushed so far."""
        return self._samples

    def push(self, pcm: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Feed 16 kHz samples; yields the blocks that are decided now."""
        self._samples += len(pcm)
        self._take(self._mel.push(np.ascontiguousarray(pcm, np.float32)))
        ready = self._rows_start + len(self._rows)
        count = self._next_feature
        while first_row(count) + WINDOW_ROWS <= ready:
            count += 1
        self._encode([first_row(j) for j in range(self._next_feature, count)])
        while self._decided():
            yield self._block(None)

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """End the stream; yields the remaining blocks, ceil(samples / 640) in all."""
        if self._samples == 0:
            return
        if self._samples < MIN_SAMPLES:
            silence = np.zeros(MIN_SAMPLES - self._samples, np.float32)
            self._take(self._mel.push(silence))
        self._take(self._mel.finish())
        rows = self._rows_start + len(self._rows)
        total = feature_count(rows)
        last = rows - WINDOW_ROWS
        self._encode([min(first_row(j), last) for j in range(self._next_feature, total)])
        while self._next_frame < frame_count(self._samples):
            yield self._block(total)

    def _decided(self) -> bool:
        """Whether the next frame has begun and its last row is a feature that exists."""
        last = self._next_frame + self._window.after - 1
        there = last < 0 or max(0, last - 1) < self._next_feature
        return there and self._next_frame * FRAME_SAMPLES < self._samples

    def _take(self, rows: NDArray[np.float32]) -> None:
        self._rows = np.concatenate([self._rows, rows])

    def _encode(self, starts: list[int]) -> None:
        """Encode the windows at these rows and drop the rows that nothing needs any more."""
        if not starts:
            return
        local = [s - self._rows_start for s in starts]
        for i in range(0, len(local), 64):
            windows = np.stack([self._rows[s : s + WINDOW_ROWS] for s in local[i : i + 64]])
            self._vectors.extend(self._features(windows))
        self._next_feature += len(starts)
        last = self._rows_start + len(self._rows) - WINDOW_ROWS
        keep = max(0, min(first_row(self._next_feature), last) - self._rows_start)
        self._rows, self._rows_start = self._rows[keep:].copy(), self._rows_start + keep

    def _block(self, total: int | None) -> NDArray[np.float32]:
        """The block of the next frame; ``total`` is the number of features once it is known."""
        i = self._next_frame
        block = np.zeros((WINDOW_ROWS, FEATURE_SIZE), np.float32)
        for k, p in enumerate(range(i - self._window.before, i + self._window.after)):
            if p < 0 or (total is not None and p > total + 1):
                continue
            j = max(0, p - 1)
            if total is not None:
                j = min(j, total - 1)
            block[k] = self._vectors[j - self._vectors_start]
        self._next_frame += 1
        # The oldest feature the next frame can still see.
        needed = max(0, self._next_frame - self._window.before - 1)
        drop = min(needed - self._vectors_start, len(self._vectors) - 1)
        if drop > 0:
            del self._vectors[:drop]
            self._vectors_start += drop
        return block
