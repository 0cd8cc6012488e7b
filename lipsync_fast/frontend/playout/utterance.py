# SPDX-License-Identifier: Apache-2.0
"""The sound of one utterance, as it comes, and what each of its frames sees of it.

Samples are numbered from the utterance's first one, at 16 kHz. Frame k shows the 40 ms from sample
640 k on. Only the samples that frames not yet made can see are kept.
"""

from __future__ import annotations

import numpy as np

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import (
    MIN_SAMPLES,
    AudioWindow,
    block_starts,
    frame_count,
    frame_sees,
    is_decided,
    samples_seen,
)
from lipsync_fast.ipc.messages import Speech, StoreMode
from lipsync_fast.timing import FRAME_SAMPLES

LEAST_ROOM = 32_000
"""Samples; twice what is kept, and more, is made room for: each is copied a few times at most."""


class Utterance:
    """Samples in, frames' views of them out.

    Args:
        stream: a number that no other utterance of this process has.
        window: which audio features a frame of the avatar sees.
    """

    def __init__(self, stream: int, window: AudioWindow) -> None:
        self.stream, self.window = stream, window
        self._gain = window.new_gain()
        self.samples = 0
        """Samples that have come so far."""
        self.ended = False
        self.decided = 0
        """Frames that all samples which they see have come for."""
        self._pcm = np.zeros(0, np.float32)
        self._first = 0
        self._room: F32 = np.zeros(LEAST_ROOM, np.float32)
        """What ``_pcm`` is a part of. What lies in it stays: others may still look at it."""
        self._end = 0
        """Where that part ends."""

    @property
    def frames(self) -> int | None:
        """How many frames there are, once the sound has ended."""
        return frame_count(self.samples) if self.ended else None

    @property
    def _heard(self) -> int:
        """Samples that frames can see: without a last block that the gain has not seen whole."""
        return self._first + len(self._pcm)

    def push(self, pcm: F32) -> None:
        """More samples (16 kHz mono in [-1, 1]).

        Raises:
            ValueError: the sound has ended.
        """
        if self.ended:
            raise ValueError("samples after the end of the utterance")
        self.samples += len(pcm)
        self._append(self._gain.push(pcm))
        while is_decided(self.decided, self.window, self._heard):
            self.decided += 1

    def end(self) -> None:
        """No more samples come; the last frames see silence behind them. Twice is harmless."""
        if self.ended:
            return
        self.ended = True
        self._append(self._gain.finish())
        self.decided = frame_count(self.samples)
        self._append(np.zeros(max(0, MIN_SAMPLES - self.samples), np.float32))

    def _append(self, pcm: F32) -> None:
        if self._end + len(pcm) > len(self._room):
            kept = len(self._pcm)
            self._room = np.zeros(max(LEAST_ROOM, 2 * (kept + len(pcm))), np.float32)
            self._room[:kept] = self._pcm
            self._end = kept
        begin = self._end - len(self._pcm)
        self._room[self._end : self._end + len(pcm)] = pcm
        self._end += len(pcm)
        self._pcm = self._room[begin : self._end]

    def speech(
        self, frame: int, share: float = 1.0, store: StoreMode = StoreMode.OFF
    ) -> tuple[Speech, F32]:
        """What a decided frame sees. Before 0 and, once ended, behind the last frame are others.

        Raises:
            ValueError: it is not decided, or its samples are forgotten.
        """
        samples = self.samples if self.ended else None
        if samples is None:
            first, end = frame_sees(frame, self.window)
        else:
            first, end = samples_seen(block_starts(frame, self.window, samples))
        if not self.ended and (frame >= self.decided or end > self._heard):
            raise ValueError(f"frame {frame} is not decided yet")
        if first < self._first and end > 0:
            raise ValueError(f"the samples of frame {frame} are forgotten")
        seen = self._pcm[first - self._first : end - self._first] if end > 0 else self._pcm[:0]
        return Speech(self.stream, frame, samples, first, share, store), np.ascontiguousarray(seen)

    def loudness(self, frame: int) -> float:
        """How far a frame's own 40 ms are from silence, 0 to 1: of their loudest sample."""
        first = max(0, frame * FRAME_SAMPLES - self._first)
        own = self._pcm[first : max(0, (frame + 1) * FRAME_SAMPLES - self._first)]
        return float(np.abs(own).max()) if len(own) else 0.0

    def seen(self, frames: int) -> list[tuple[Speech, F32]]:
        """What its first frames see, as many as are decided, up to ``frames``."""
        return [self.speech(frame) for frame in range(min(frames, self.decided))]

    def forget(self, frame: int) -> None:
        """Drop the samples that no frame from ``frame`` on can see, whenever the sound ends."""
        # A sound that ends now moves the last windows back by at most two frames.
        first, _ = frame_sees(max(0, frame - 4), self.window)
        keep = min(first, max(0, self._heard - 2 * FRAME_SAMPLES * 16))
        if keep > self._first:
            self._pcm = self._pcm[keep - self._first :]
            self._first = keep
