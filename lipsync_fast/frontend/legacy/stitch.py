# SPDX-License-Identifier: Apache-2.0
"""Which sound an old client's window shows: found by its contents, since its frame_id does not say.

A window is 16 chunks of 40 ms: 8 before, the current one, 7 after. Windows that follow each other
share most of their chunks, so a connection's windows are laid over each other where their chunks
are equal, and the new ones are appended to one sound:

    the sound so far      a b c d e f g h i j k l m n o p
    the next window           c d e f g h i j k l m n o p q r     shift 2: q and r are new
                                              ^ its current chunk: frame 10 of the sound

Its frames are cut out of that sound exactly as those of any other stream, so what they see of the
past is what a render of the whole sound would show them. Of the future they see what the window
holds; the rest is as at the end of a recording. Nothing here does input or output.

Where a shift is not the only one (silence, or one sound over and over): the last positive shift of
the sound if it fits, else the smallest positive one, else none, else the smallest step back. A
window that fits nowhere begins a new sound, of which it is all that is known.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soxr

from lipsync_fast.arrays import F32
from lipsync_fast.audio.gain import AutomaticGain, levelled
from lipsync_fast.audio.pcm import Resampler
from lipsync_fast.audio.windows import (
    HALF,
    HOP,
    MIN_SAMPLES,
    AudioWindow,
    block_starts,
    samples_seen,
)
from lipsync_fast.ipc.messages import Speech
from lipsync_fast.timing import FRAME_SAMPLES, SAMPLE_RATE

RATE = 24_000
CHUNK_BYTES = 1_920
"""40 ms of int16 at 24 kHz; 640 samples at 16 kHz, one frame."""
BEFORE = 8
"""Chunks of a window before its current one."""
AFTER = 7
"""Chunks of a window behind it."""
AHEAD = 24
"""Chunks behind the current one that are taken; no frame sees farther."""
KEPT_CHUNKS = 32
"""Chunks of a sound that are kept, among which windows are looked for."""
PAST_SAMPLES = 20 * FRAME_SAMPLES
"""Kept before the oldest of these: as far back as its frame can see."""
FEWEST_CHUNKS = 6
"""A shorter window is a sound of its own: it has not one whole audio vector of real samples."""
EDGE = 160
"""Samples at an end that a resampler changes when more comes (by more than 1e-6)."""
SOUNDS = 4
"""Avatars of a connection whose sounds are kept."""
NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class SoundWindow:
    """A window in its sound; stays as it is when the sound goes on.

    Attributes:
        stream: number of the sound.
        frame: the window's current chunk in it.
        pcm: what is kept of the sound, 16 kHz; first: number of its first sample.
        even: the same with its level evened out (``audio.gain``), in whole blocks.
        samples: of the whole sound, where the window is all of it (with silence behind it in
            ``pcm`` where it is shorter than MIN_SAMPLES).
        frames: that the window holds from its current chunk on with 7 chunks behind each; 1 at
            least.
    """

    stream: int
    frame: int
    pcm: F32
    even: F32
    first: int = 0
    samples: int | None = None
    frames: int = 1

    def speech(self, window: AudioWindow, ahead: int = 0) -> tuple[Speech, F32]:
        """What a frame sees, and the samples for it.

        Audio vectors are made of real samples only, so that those of one sound are the same
        whichever window they came with. Where a frame sees farther than what is known, the sound
        is said to end so that its last vectors are the last such ones.

        Args:
            window: which audio features a frame of the avatar sees.
            ahead: frames behind the window's current one.
        """
        frame, samples = self.frame + ahead, self.samples
        heard = self.even if window.levelled else self.pcm
        starts = block_starts(frame, window, samples)
        known = self.first + len(heard)
        if samples is None and samples_seen(starts)[1] > known:
            samples = HOP * ((known - HALF) // HOP)
            starts = block_starts(frame, window, samples)
        first, end = samples_seen(starts)
        seen = heard[first - self.first : end - self.first] if end else NOTHING
        return Speech(self.stream, frame, samples, first), np.ascontiguousarray(seen)


class _Sound:
    """A sound that windows go on with; its chunks and samples are numbered from its first one."""

    def __init__(self, stream: int, chunks: list[bytes]) -> None:
        self.stream = stream
        self.at, self._shift = 0, 1
        self._chunks: list[bytes] = []
        self._oldest = 0
        self._resampler, self._gain = Resampler(RATE), AutomaticGain()
        self._pcm, self._even, self._first = NOTHING, NOTHING, 0
        self._append(chunks)

    def take(self, window: list[bytes]) -> bool:
        """Lay a window over the sound and append what is new; False where it fits nowhere."""
        at = self._find(window)
        if at is None:
            return False
        if at > self.at:
            self._shift = at - self.at
        self.at = at
        self._append(window[self._end - at :])
        return True

    def located(self, current: int, frames: int) -> SoundWindow:
        """The window taken last, with its current chunk."""
        tail, gain = self._tail(), copy.copy(self._gain)
        pcm = np.concatenate([self._pcm, tail])
        even = np.concatenate([self._even, gain.push(tail)])
        return SoundWindow(self.stream, self.at + current, pcm, even, self._first, frames=frames)

    @property
    def _end(self) -> int:
        return self._oldest + len(self._chunks)

    def _find(self, window: list[bytes]) -> int | None:
        fits = {at - self.at for at in range(self._oldest, self._end) if self._fits(window, at)}
        if not fits:
            return None
        if self._shift in fits:
            return self.at + self._shift
        return self.at + min(fits, key=lambda shift: (shift < 0, shift == 0, abs(shift)))

    def _fits(self, window: list[bytes], at: int) -> bool:
        """Whether a window that begins at ``at`` agrees with what is there, in more than silence.

        Chunks of one value prove little: they count where they are half of the window.
        """
        there = self._chunks[at - self._oldest :][: len(window)]
        here = window[: len(there)]
        return here == there and (2 * len(there) >= len(window) or any(map(_varies, there)))

    def _append(self, chunks: list[bytes]) -> None:
        if not chunks:
            return
        samples = self._resampler.push(_samples(chunks))
        self._pcm = np.concatenate([self._pcm, samples])
        self._even = np.concatenate([self._even, self._gain.push(samples)])
        self._chunks += chunks
        # All of the window taken last stays, however long.
        drop = max(0, min(len(self._chunks) - KEPT_CHUNKS, self.at - self._oldest))
        del self._chunks[:drop]
        self._oldest += drop
        first = max(self._first, self._oldest * FRAME_SAMPLES - PAST_SAMPLES)
        self._pcm = self._pcm[first - self._first :]
        self._even = self._even[first - self._first :]
        self._first = first

    def _tail(self) -> F32:
        """The samples that the resampler holds back (up to 36 ms): its own within 1e-6."""
        known = self._first + len(self._pcm)
        begin = max(self._oldest, known // FRAME_SAMPLES - 2)
        sound = _samples(self._chunks[begin - self._oldest :])
        samples: F32 = soxr.resample(sound, RATE, SAMPLE_RATE, quality="HQ")
        return samples[known - begin * FRAME_SAMPLES : len(samples) - EDGE]


class Stitcher:
    """The sounds of a connection.

    Args:
        streams: gives each sound a number that no other of this process has.
    """

    def __init__(self, streams: Callable[[], int]) -> None:
        self._streams = streams
        self._sounds: OrderedDict[str, _Sound] = OrderedDict()

    def locate(self, avatar: str, audio: bytes | memoryview, frames: int = 1) -> SoundWindow | None:
        """Where a window lies in the sound of its avatar's windows.

        Args:
            avatar: whose mouth is to move.
            audio: int16 mono at 24 kHz. An odd byte, or a part of a chunk, at the end is ignored;
                less than one chunk is followed by silence.
            frames: how many are to be made of the window, from its current chunk on.

        Returns:
            None where there is no audio at all.
        """
        if len(audio) < 2:
            return None
        chunks = _chunks(audio[: (BEFORE + frames + AHEAD) * CHUNK_BYTES])
        current = min(BEFORE, len(chunks) - 1)
        if len(chunks) < FEWEST_CHUNKS:
            alone = _alone(chunks)
            behind = 0, max(0, MIN_SAMPLES - len(alone))
            padded, even = np.pad(alone, behind), np.pad(levelled(alone), behind)
            return SoundWindow(self._streams(), current, padded, even, samples=len(alone))
        sound = self._sounds.get(avatar)
        if sound is None or not sound.take(chunks):
            sound = self._sounds[avatar] = _Sound(self._streams(), chunks)
        self._sounds.move_to_end(avatar)
        if len(self._sounds) > SOUNDS:
            self._sounds.popitem(last=False)
        return sound.located(current, max(1, len(chunks) - BEFORE - AFTER))


def _chunks(audio: bytes | memoryview) -> list[bytes]:
    data = bytes(audio)
    if len(data) < CHUNK_BYTES:
        data = data[: len(data) & ~1].ljust(CHUNK_BYTES, b"\0")
    return [data[k : k + CHUNK_BYTES] for k in range(0, len(data) - CHUNK_BYTES + 1, CHUNK_BYTES)]


def _samples(chunks: list[bytes]) -> F32:
    return np.frombuffer(b"".join(chunks), "<i2").astype(np.float32) / np.float32(32768)


def _varies(chunk: bytes) -> bool:
    """Not all samples are one value."""
    return chunk[2:] != chunk[:-2]


def _alone(chunks: list[bytes]) -> F32:
    resampler = Resampler(RATE)
    return np.concatenate([resampler.push(_samples(chunks)), resampler.finish()])
