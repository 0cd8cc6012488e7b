# SPDX-License-Identifier: Apache-2.0
"""What a step learns from: frames of a prepared folder, and what is heard at them.

Which frames a step sees follows from the seed and the step's number alone, so nothing about the
order has to be kept: frames in a new order each time all have been seen, each with another frame of
the same person drawn at random.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.arrays import F32
from lipsync_fast.closing import Closing
from lipsync_fast.errors import TrainingError
from lipsync_fast.families.synctalk2d import REGION_BORDER

MIN_FRAMES = 50
"""Two seconds: with fewer there is nothing to hold out and little to learn."""
HELD_SHARE, HELD_BLOCK = 12, 25
"""One of so many blocks of a second is held out: neighbours of a frame look the same."""
LOOKED_AT = 48
"""Held-out frames that a validation looks at, at most."""
APART = 5
"""Frames that another moment of the sound is away, at least."""
CACHE_BYTES = 256 << 20
AHEAD = 3
"""Batches that are made before they are needed."""


BatchT = TypeVar("BatchT")


class Pictures(Protocol):
    """What is needed of a prepared folder."""

    def __len__(self) -> int: ...
    def crop(self, index: int, side: int) -> NDArray[np.uint8]:
        """side x side x 3 uint8 RGB."""


class Sound(Protocol):
    """What is heard at a frame."""

    def block(self, index: int) -> F32:
        """32 x 16 x 16."""


class Batch(NamedTuple):
    """B frames of float32; pictures are BGR in 0..1.

    Attributes:
        image: B x 6 x R x R: another frame's region, and the target's with the face masked.
        target: B x 3 x R x R: what shall come out.
        audio: B x 32 x 16 x 16, heard at the target.
        other: B x 32 x 16 x 16, heard at another moment.
    """

    image: F32
    target: F32
    audio: F32
    other: F32


def split(count: int) -> tuple[list[int], list[int]]:
    """The frames to learn from, and those held out, of so many.

    Raises:
        TrainingError: there are too few.
    """
    if count < MIN_FRAMES:
        raise TrainingError(
            f"{count} frames are too few to learn from; {MIN_FRAMES} (2 s) are the least,"
            " two minutes and more are usual"
        )
    block = min(HELD_BLOCK, count // 10)
    held = {i for i in range(count) if i // block % HELD_SHARE == HELD_SHARE // 2} or {
        *range(count // 2, count // 2 + block)
    }
    return [i for i in range(count) if i not in held], sorted(held)


class Order:
    """Which frames each step sees; a pure function of the seed and the step."""

    def __init__(self, frames: Sequence[int], batch: int, seed: int) -> None:
        self._frames = np.array(frames)
        self._batch, self._seed = batch, seed
        self._lock = threading.Lock()
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def step(self, number: int) -> list[tuple[int, int, int]]:
        """Each sample's target, the frame shown beside it, and a frame at another moment."""
        count = len(self._frames)
        draw = np.random.default_rng([self._seed, 1, number])
        apart = min(APART, count // 4)
        out = []
        for k in range(number * self._batch, (number + 1) * self._batch):
            target = int(self._shuffled(k // count)[k % count])
            shown = (target + int(draw.integers(1, count))) % count
            other = (target + int(draw.integers(apart, count - apart + 1))) % count
            out.append(tuple(int(self._frames[p]) for p in (target, shown, other)))
        return out  # type: ignore[return-value]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        with self._lock:
            if epoch not in self._epochs:
                for old in [e for e in self._epochs if e < epoch - 1]:
                    del self._epochs[old]
                draw = np.random.default_rng([self._seed, 0, epoch])
                self._epochs[epoch] = draw.permutation(len(self._frames))
            return self._epochs[epoch]


class Crops:
    """A film's face crops, decoded when they are needed.

    Args:
        pictures: the prepared folder.
        region: the network's, in pixels.
        cache_bytes: of crops that are kept.
    """

    def __init__(self, pictures: Pictures, region: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._pictures = pictures
        self._side = region + 2 * REGION_BORDER
        self._most = max(1, cache_bytes // (3 * self._side**2))
        self._kept: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def crop(self, index: int) -> NDArray[np.uint8]:
        """A frame's crop, C x C x 3 uint8 RGB."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        made = self._pictures.crop(index, self._side)
        with self._lock:
            self._kept[index] = made
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made


class Data:
    """Frames as the reference's way of training shows them.

    Args:
        crops: of the film.
        sound: what is heard.
    """

    def __init__(self, crops: Crops, sound: Sound) -> None:
        self._crops, self._sound = crops, sound

    def batch(self, samples: Sequence[tuple[int, int, int]]) -> Batch:
        """The samples' arrays."""
        image, target = [], []
        for wanted, shown, _ in samples:
            own = _native.region_input(self._crops.crop(wanted), REGION_BORDER)
            beside = _native.region_input(self._crops.crop(shown), REGION_BORDER)
            image.append(np.concatenate([beside[:3], own[3:]]))
            target.append(own[:3])
        return Batch(
            np.stack(image),
            np.stack(target),
            np.stack([self._sound.block(wanted) for wanted, _, _ in samples]),
            np.stack([self._sound.block(other) for _, _, other in samples]),
        )


class Feed(Closing, Generic[BatchT]):
    """The batches of consecutive steps, made by threads a little ahead; use as a context.

    Args:
        make: a step's batch.
        first: the first step's number.
        last: the number after the last step's.
        workers: threads.
    """

    def __init__(self, make: Callable[[int], BatchT], first: int, last: int, workers: int) -> None:
        self._make = make
        self._next, self._last = first, last
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="frames")
        self._ahead = AHEAD + workers - 1
        self._waiting: deque[Future[BatchT]] = deque()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def next(self) -> BatchT:
        """The next step's batch."""
        while len(self._waiting) < self._ahead and self._next < self._last:
            self._waiting.append(self._pool.submit(self._make, self._next))
            self._next += 1
        return self._waiting.popleft().result()


def looked_at(held: Sequence[int]) -> list[tuple[int, int, int]]:
    """The samples of a validation: evenly spaced held-out frames, each beside one far from it.

    The frame beside is not the target itself, as it is when the avatar plays: what is in the
    picture already need not be heard.
    """
    count = min(LOOKED_AT, len(held))
    chosen = sorted({int(p) for p in np.linspace(0, len(held) - 1, count)})
    half = len(held) // 2
    return [(held[p], held[(p + half) % len(held)], held[p]) for p in chosen]
