# SPDX-License-Identifier: Apache-2.0
"""The offline pipeline: a stream of 16 kHz PCM to composed frames, in order, in bounded memory.

Sound is read and encoded by the caller's thread while the backend makes the frames before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.windows import BlockStream
from lipsync_fast.engine.backends.base import Backend, LoadedAvatar, RegionJob


@dataclass(frozen=True, slots=True)
class Picture:
    """A composed frame: its number, the avatar frame under it, and H x W x 3 uint8 RGB."""

    index: int
    picture_index: int
    image: NDArray[np.uint8]


def as_it_is(place: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Nothing more to do with a frame."""
    return image


def pictures(
    backend: Backend, avatar: LoadedAvatar, pcm: Iterable[NDArray[np.float32]], start_frame: int = 0
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
    blocks = BlockStream(manifest.audio, lambda windows: backend.features(avatar, windows))
    begun: deque[tuple[int, int, Future[NDArray[np.uint8]]]] = deque()
    count = 0

    def begin(block: NDArray[np.float32]) -> None:
        nonlocal count
        index = manifest.picture_index(count, start_frame)
        job = RegionJob(avatar, index, block)
        begun.append((count, index, backend.submit([job], as_it_is)[0]))
        count += 1

    def ready(most: int) -> Iterator[Picture]:
        """What is done, and as much of the rest as it takes to leave at most ``most`` begun."""
        while begun and (len(begun) > most or begun[0][2].done()):
            number, index, future = begun.popleft()
            yield Picture(number, index, future.result())

    try:
        for piece in pcm:
            for block in blocks.push(piece):
                begin(block)
                yield from ready(backend.depth)
            yield from ready(backend.depth)
        for block in blocks.finish():
            begin(block)
            yield from ready(backend.depth)
        yield from ready(0)
    finally:
        for _, _, future in begun:
            future.cancel()
