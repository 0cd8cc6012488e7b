# SPDX-License-Identifier: Apache-2.0
"""The offline pipeline: a stream of 16 kHz PCM to composed frames, in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def pictures(
    backend: Backend, avatar: LoadedAvatar, pcm: Iterable[NDArray[np.float32]], start_frame: int = 0
) -> Iterator[Picture]:
    """Frames of a sound: ceil(samples / 640) of them.

    Args:
        backend: runs the networks.
        avatar: loaded by ``backend``.
        pcm: pieces of 16 kHz mono float32, of any size.
        start_frame: the avatar frame under the first picture.
    """
    manifest = avatar.package.manifest
    blocks = BlockStream(manifest.audio, lambda windows: backend.features(avatar, windows))
    count = 0

    def make(block: NDArray[np.float32]) -> Picture:
        nonlocal count
        index = manifest.picture_index(count, start_frame)
        region = backend.regions([RegionJob(avatar, index, block)])[0]
        made = Picture(count, index, backend.compose(avatar, index, region))
        count += 1
        return made

    for piece in pcm:
        for block in blocks.push(piece):
            yield make(block)
    for block in blocks.finish():
        yield make(block)
