# SPDX-License-Identifier: Apache-2.0
"""From a 16 kHz stream to the audio block of every video frame, as soon as each is decided.

Feature j reads mel rows [int(3.2 j), int(3.2 j) + 16); a window past the end is moved back to the
last 16 rows. There are F = int((M - 16) / 80 * 25) + 2 features for M rows; the first and the last
are repeated once, and frame i sees padded rows [i - before, i + after). Outside there are zeros,
or the nearest row again, as the window says.

``block_starts`` is that rule; a feature is known by the mel row at which its window begins. Whole
streams go through ``BlockStream``, single frames cut out of a stream through ``BlockCache``: both
give the same blocks bit for bit, whatever the pieces.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Annotated, Literal

import msgspec
import numpy as np

from lipsync_fast._native import MelStream, mel_rows_at
from lipsync_fast.arrays import F32
from lipsync_fast.audio.gain import AutomaticGain, NoGain
from lipsync_fast.timing import FRAME_SAMPLES

FEATURE_SIZE = 512
"""Numbers of an audio vector, in all families: they share the audio encoder."""
WINDOW_ROWS = 16
"""Mel rows that a feature reads."""
HOP, HALF = 200, 400
"""Samples between mel rows; row r sees samples HOP r - HALF .. HOP r + HALF - 1."""
MIN_SAMPLES = 3_000
"""A shorter sound is followed by silence up to here, so that one mel window exists."""
BATCH = 64
REST_S = 10.0
"""A stream that is not used for so long is forgotten: it costs its vectors if it goes on."""

Features = Callable[[F32], F32]
"""Mel windows N x 16 x 80 to features N x 512."""


class AudioWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which audio feature vectors a frame sees: padded rows [i - before, i + after).

    Padded row p is feature p - 1, and feature j reads mel rows [int(3.2 j), int(3.2 j) + 16). So
    8 and 8 are 16 vectors, a look-ahead of 452.5 ms; -1 and 2 are feature i alone, 212.5 ms.
    """

    before: Annotated[int, msgspec.Meta(ge=-1, le=16)] = 8
    after: Annotated[int, msgspec.Meta(ge=0, le=16)] = 8
    edge: Literal["nearest"] | msgspec.UnsetType = msgspec.UNSET
    """What a frame sees outside of the sound: vectors of zeros, or the nearest one that there is.
    Not written where it is zeros, which older versions read, too."""
    gain: Literal["auto"] | msgspec.UnsetType = msgspec.UNSET
    """Whether the sound's level is evened out before it is heard (``audio.gain``). Not written
    where it is heard as it comes, which older versions read, too."""

    @property
    def levelled(self) -> bool:
        """Whether automatic gain control stands before the networks."""
        return self.gain is not msgspec.UNSET

    def new_gain(self) -> AutomaticGain | NoGain:
        """What a sound passes before it is heard."""
        return AutomaticGain() if self.levelled else NoGain()

    @property
    def vectors(self) -> int:
        """How many a frame sees."""
        return self.before + self.after

    @property
    def padded(self) -> bool:
        """Whether there are vectors of zeros outside of the sound."""
        return self.edge is msgspec.UNSET

    @property
    def lookahead_samples(self) -> int:
        """Samples at 16 kHz after a frame's start that its picture depends on.

        The last feature seen is i + after - 2. Feature j ends with mel row int(3.2 j) + 15, whose
        window ends 400 samples after 200 (int(3.2 j) + 15). 7240 for 8 and 8; 3400 for -1 and 2.
        """
        return 640 * (self.after - 2) + 200 * 15 + 400


def first_row(feature: int) -> int:
    """First mel row of a feature's window."""
    return int(3.2 * feature)


def feature_count(rows: int) -> int:
    """Features of a sound with ``rows`` mel rows (16 or more)."""
    return int((rows - WINDOW_ROWS) / 80 * 25) + 2


def frame_count(samples: int) -> int:
    """Video frames of a sound: ceil(samples / 640)."""
    return -(-samples // FRAME_SAMPLES)


def block_starts(frame: int, window: AudioWindow, samples: int | None = None) -> list[int]:
    """For each of the vectors that a frame sees, the mel row at which its window begins.

    Args:
        frame: its number in the sound; those before 0 and behind the last see padding.
        window: which vectors a frame of the avatar sees.
        samples: of the whole sound; None while that is not known (the frame must be decided).

    Returns:
        ``window.vectors`` numbers, oldest first; -1 stands for a vector of zeros.
    """
    padded, zeros = range(frame - window.before, frame + window.after), window.padded
    if samples is None:
        return [-1 if p < 0 and zeros else first_row(max(0, p - 1)) for p in padded]
    rows = 1 + max(samples, MIN_SAMPLES) // HOP
    total = feature_count(rows)
    return [
        -1
        if zeros and (p < 0 or p > total + 1)
        else min(first_row(min(max(0, p - 1), total - 1)), rows - WINDOW_ROWS)
        for p in padded
    ]


def samples_seen(starts: Iterable[int]) -> tuple[int, int]:
    """First sample, and the one after the last, that these windows read (not cut at the end)."""
    rows = [s for s in starts if s >= 0]
    if not rows:
        return 0, 0
    # One sample before the first window goes into its pre-emphasis.
    return max(0, HOP * min(rows) - HALF - 1), HOP * (max(rows) + WINDOW_ROWS - 1) + HALF


def frame_sees(frame: int, window: AudioWindow) -> tuple[int, int]:
    """``samples_seen`` of a frame in a sound whose end is not known, without its starts."""
    last = frame + window.after - 1
    if last < 0 and window.padded:
        return 0, 0
    first = first_row(max(0, frame - window.before - 1))
    end = first_row(max(0, last - 1)) + WINDOW_ROWS - 1
    return max(0, HOP * first - HALF - 1), HOP * end + HALF


def is_decided(frame: int, window: AudioWindow, samples: int) -> bool:
    """Whether a frame has begun, and so many samples hold all it sees, whatever follows them."""
    return frame * FRAME_SAMPLES < samples and frame_sees(frame, window)[1] <= samples


def stacked(starts: list[int], vectors: dict[int, F32] | OrderedDict[int, F32]) -> F32:
    """The block, starts x 512: a vector for each start, zeros for -1."""
    block = np.zeros((len(starts), FEATURE_SIZE), np.float32)
    for k, start in enumerate(starts):
        if start >= 0:
            block[k] = vectors[start]
    return block


class BlockStream:
    """Audio blocks (vectors x 512 float32) of the frames 0, 1, 2 … of a stream, in order.

    Args:
        window: which feature rows a frame sees.
        features: the audio encoder.

    Memory is bounded: only the mel rows and features that later frames still need are kept.
    """

    def __init__(self, window: AudioWindow, features: Features) -> None:
        self._window, self._features = window, features
        self._mel, self._gain = MelStream(), window.new_gain()
        self._samples = 0
        """Samples pushed so far."""
        self._heard = 0
        """Those that have passed the gain."""
        self._rows = np.zeros((0, 80), np.float32)
        self._rows_start = 0
        self._vectors: dict[int, F32] = {}
        self._next = 0

    @property
    def samples(self) -> int:
        """Samples pushed so far."""
        return self._samples

    def push(self, pcm: F32) -> Iterator[F32]:
        """Feed 16 kHz samples; yields the blocks that are decided now."""
        self._samples += len(pcm)
        self._hear(self._gain.push(np.ascontiguousarray(pcm, np.float32)))
        last = self._next
        while is_decided(last, self._window, self._heard):
            last += 1
        yield from self._blocks(last, None)

    def finish(self) -> Iterator[F32]:
        """End the stream; yields the remaining blocks, ceil(samples / 640) in all."""
        if self._samples == 0:
            return
        self._hear(self._gain.finish())
        if self._samples < MIN_SAMPLES:
            self._take(self._mel.push(np.zeros(MIN_SAMPLES - self._samples, np.float32)))
        self._take(self._mel.finish())
        yield from self._blocks(frame_count(self._samples), self._samples)

    def _hear(self, pcm: F32) -> None:
        self._take(self._mel.push(pcm))
        self._heard += len(pcm)

    def _take(self, rows: F32) -> None:
        self._rows = np.concatenate([self._rows, rows])

    def _blocks(self, last: int, samples: int | None) -> Iterator[F32]:
        """Blocks of the frames up to ``last``, encoded together in batches."""
        while self._next < last:
            frames = range(self._next, min(last, self._next + BATCH))
            seen = [block_starts(i, self._window, samples) for i in frames]
            self._encode(sorted({s for starts in seen for s in starts if s >= 0}))
            for starts in seen:
                self._next += 1
                yield stacked(starts, self._vectors)
            self._forget(block_starts(self._next, self._window))

    def _encode(self, starts: list[int]) -> None:
        missing = [s for s in starts if s not in self._vectors]
        if missing:
            windows = [self._rows[s - self._rows_start :][:WINDOW_ROWS] for s in missing]
            self._vectors |= zip(missing, self._features(np.stack(windows)), strict=True)

    def _forget(self, ahead: list[int]) -> None:
        """Drop what no later frame needs; at the end, windows may move back to the last rows."""
        oldest = min((s for s in ahead if s >= 0), default=0)
        self._vectors = {s: v for s, v in self._vectors.items() if s >= oldest - WINDOW_ROWS}
        end = self._rows_start + len(self._rows)
        keep = max(self._rows_start, min(max([oldest, *self._vectors]), end - WINDOW_ROWS))
        self._rows = self._rows[keep - self._rows_start :].copy()
        self._rows_start = keep


class BlockCache:
    """Audio blocks of single frames, each cut out of its stream with the samples that it sees.

    Vectors that frames share are computed once and kept: those of the ``streams`` streams used
    last, ``depth`` (16 or more) of each, and not of those that have not been used for
    ``rest_s``: their sound has most likely ended, which nobody tells. It holds no truth: without
    it, the blocks are the same.
    """

    def __init__(
        self,
        features: Features,
        streams: int = 1024,
        depth: int = 48,
        rest_s: float = REST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._features, self._streams, self._depth = features, streams, depth
        self._rest_s, self._clock = rest_s, clock
        self._kept: OrderedDict[Hashable, OrderedDict[int, F32]] = OrderedDict()
        self._used: dict[Hashable, float] = {}
        self.made = 0

    def block(self, stream: Hashable, starts: list[int], pcm: F32, first: int) -> F32:
        """The block of a frame, vectors x 512.

        Args:
            stream: a key that no other sound has; its samples never change.
            starts: ``block_starts`` of the frame.
            pcm: the stream's samples from ``first`` on, as ``samples_seen`` says; fewer where the
                sound ends (with silence up to MIN_SAMPLES behind a shorter one).
            first: number of the first sample.

        Raises:
            ValueError: ``pcm`` begins too late.
        """
        if stream not in self._kept:
            self._forget_resting()
        kept = self._kept.setdefault(stream, OrderedDict())
        self._kept.move_to_end(stream)
        self._used[stream] = self._clock()
        needed = sorted({s for s in starts if s >= 0})
        missing = [s for s in needed if s not in kept]
        if missing:
            low, high = missing[0], missing[-1] + WINDOW_ROWS
            rows = mel_rows_at(np.ascontiguousarray(pcm, np.float32), first, low, high - low)
            windows = np.stack([rows[s - low :][:WINDOW_ROWS] for s in missing])
            kept.update(zip(missing, self._features(windows), strict=True))
        self.made += len(missing)
        for start in needed:
            kept.move_to_end(start)
        block = stacked(starts, kept)
        while len(kept) > self._depth:
            kept.popitem(last=False)
        while len(self._kept) > self._streams:
            self.forget(next(iter(self._kept)))
        return block

    @property
    def streams(self) -> int:
        """Streams of which something is kept."""
        return len(self._kept)

    def forget(self, stream: Hashable) -> None:
        """Drop what is kept of a stream that has ended."""
        self._kept.pop(stream, None)
        self._used.pop(stream, None)

    def _forget_resting(self) -> None:
        before = self._clock() - self._rest_s
        while self._kept and self._used[oldest := next(iter(self._kept))] < before:
            self.forget(oldest)
