# SPDX-License-Identifier: Apache-2.0
"""The offline pipeline: a stream of 16 kHz PCM to composed frames, in order, in bounded memory.

Sound is read and encoded by the caller's thread while the backend makes the frames before it; a
backend that takes sound gets the samples with the frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import (
    MIN_SAMPLES,
    AudioWindow,
    BlockStream,
    block_starts,
    frame_count,
    is_decided,
    samples_seen,
)
from lipsync_fast.engine.backends.base import Backend, LoadedAvatar, RegionJob, Sound


@dataclass(frozen=True, slots=True)
class Picture:
    """A composed frame: its number, the avatar frame under it, and H x W x 3 uint8 RGB."""

    index: int
    avatar_frame: int
    image: NDArray[np.uint8]


def as_it_is(place: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Nothing more to do with a frame."""
    return image


class SoundStream:
    """What the frames 0, 1, 2 … of a stream see of it; for backends that take sound.

    As ``audio.windows.BlockStream``, with samples in place of blocks. Only those are kept that
    later frames still see.
    """

    def __init__(self, window: AudioWindow) -> None:
        self._window, self._key, self._gain = window, object(), window.new_gain()
        self._kept = np.zeros(0, np.float32)
        self._first = self._samples = self._next = 0

    def push(self, pcm: F32) -> Iterator[Sound]:
        """Feed 16 kHz samples; yields what is decided now."""
        self._samples += len(pcm)
        self._kept = np.concatenate([self._kept, self._gain.push(pcm)])
        while is_decided(self._next, self._window, self._first + len(self._kept)):
            yield self._sound(None)

    def finish(self) -> Iterator[Sound]:
        """End the stream; yields the rest, ceil(samples / 640) in all."""
        short = max(0, MIN_SAMPLES - self._samples) if self._samples else 0
        rest = self._gain.finish(), np.zeros(short, np.float32)
        self._kept = np.concatenate([self._kept, *rest])
        while self._next < frame_count(self._samples):
            yield self._sound(self._samples)

    def _sound(self, samples: int | None) -> Sound:
        starts = block_starts(self._next, self._window, samples)
        first, end = samples_seen(starts)
        self._next += 1
        if first > self._first + 16_000:
            # Frames at the end go back to the last windows: some more than the next one sees.
            self._kept = self._kept[first - 8_000 - self._first :].copy()
            self._first = first - 8_000
        seen = self._kept[first - self._first : end - self._first]
        return Sound(self._key, tuple(starts), seen, first)


def pictures(
    backend: Backend, avatar: LoadedAvatar, pcm: Iterable[F32], start_frame: int = 0
) -> Iterator[Picture]:
    """Frames of a sound: ceil(samples / 640) of them.

    Args:
        backend: runs the networks.
        avatar: loaded by ``backend``.
        pcm: pieces of 16 kHz mono float32, of any size.
        start_frame: the avatar frame under the first picture.

    With PCM that comes live, a frame is given out when it is done and the next piece has come.
    """
    manifest = avatar.package.manifest
    stream: BlockStream | SoundStream
    if backend.takes_sound:
        stream = SoundStream(manifest.audio)
    else:
        stream = BlockStream(manifest.audio, lambda windows: backend.features(avatar, windows))
    begun: deque[tuple[int, int, Future[NDArray[np.uint8]]]] = deque()
    count = 0

    def begin(heard: F32 | Sound) -> None:
        nonlocal count
        index = manifest.avatar_frame(count, start_frame)
        block, sound = (None, heard) if isinstance(heard, Sound) else (heard, None)
        job = RegionJob(avatar, index, block, sound=sound)
        begun.append((count, index, backend.submit([job], as_it_is)[0]))
        count += 1

    def ready(most: int) -> Iterator[Picture]:
        """What is done, and as much of the rest as it takes to leave at most ``most`` begun."""
        while begun and (len(begun) > most or begun[0][2].done()):
            number, index, future = begun.popleft()
            yield Picture(number, index, future.result())

    try:
        for piece in pcm:
            for heard in stream.push(piece):
                begin(heard)
                yield from ready(backend.depth)
            yield from ready(backend.depth)
        for heard in stream.finish():
            begin(heard)
            yield from ready(backend.depth)
        yield from ready(0)
    finally:
        for _, _, future in begun:
            future.cancel()
