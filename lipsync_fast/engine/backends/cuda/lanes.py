# SPDX-License-Identifier: Apache-2.0
"""The memory that a batch has to itself from its planning until its results have been read.

There are a few of them (``LANES``): while one batch is computed, the next one's tables cross to the
device and the last one's bytes come back. A lane that is given out is idle: its last batch has
ended, so its memory may be written and, where it is too small, replaced.

    staging   tables and samples: written on the host, one copy to the device
    device    pixels of the parts, coded segments, their sizes and offsets
    back      pixels, coded bytes (the device writes them there itself) and offsets, on the host
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsync_fast.engine.backends.cuda.device import Device, Stream

LANES = 3
ALIGNMENT = 256
_TORCH: dict[str, torch.dtype] = {
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
}


def aligned(size: int) -> int:
    """The next multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an array lies in a staging."""

    at: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Staging:
    """Arrays of a batch, laid one behind the other in pinned memory, and their copy."""

    def __init__(self, device: Device, size: int = 1 << 16) -> None:
        self._device = device
        self._end = 0
        self._allocate(aligned(size))

    def _allocate(self, size: int) -> None:
        self._host = self._device.pinned(size)
        self._bytes: NDArray[np.uint8] = self._host.numpy()
        self._there = torch.empty(size, dtype=torch.uint8, device=self._device.where)

    def begin(self, most: int) -> None:
        """Forget what there was; up to ``most`` bytes come, alignment included."""
        self._end = 0
        if most > len(self._bytes):
            self._allocate(aligned(most + most // 2))

    def room(self, shape: tuple[int, ...], dtype: str) -> tuple[Placed, NDArray[Any]]:
        """Place for an array, and the array there, to be filled.

        Raises:
            ValueError: more comes than ``begin`` was told.
        """
        kind = np.dtype(dtype)
        size = kind.itemsize
        for length in shape:
            size *= length
        at = self._end
        self._end = at + aligned(size)
        if self._end > len(self._bytes):
            raise ValueError(f"{self._end} bytes in a staging of {len(self._bytes)}")
        placed = Placed(at, size, shape, _TORCH[dtype])
        return placed, self._bytes[at : at + size].view(kind).reshape(shape)

    def upload(self) -> None:
        """Begin to copy all of it, on the current stream."""
        if self._end:
            self._there[: self._end].copy_(self._host[: self._end], non_blocking=True)

    def there(self, placed: Placed) -> Tensor:
        """An array on the device."""
        part = self._there[placed.at : placed.at + placed.size]
        return part.view(placed.dtype).view(placed.shape)


class Buffer:
    """Memory of one kind that is replaced where it is too small; its contents do not last."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        self._make = make
        self._memory: Tensor | None = None

    def room(self, count: int) -> Tensor:
        """The first ``count`` elements."""
        if self._memory is None or len(self._memory) < count:
            self._memory = None  # first, so that both do not take room at once
            self._memory = self._make(max(64, count + count // 4))
        return self._memory[:count]


class Lane:
    """See above. Made and given out by one thread.

    Attributes:
        uploaded, composed, done: events of the batch that has it.
    """

    def __init__(self, device: Device) -> None:
        def there(dtype: torch.dtype) -> Buffer:
            return Buffer(lambda count: torch.empty(count, dtype=dtype, device=device.where))

        self.staging = Staging(device)
        self.pixels, self.coded = there(torch.uint8), there(torch.uint8)
        self.sizes, self.offsets = there(torch.int32), there(torch.int32)
        self.pixels_back, self.packed = Buffer(device.pinned), Buffer(device.pinned)
        self.offsets_back = Buffer(lambda count: device.pinned(4 * count).view(torch.int32))
        self.uploaded, self.composed, self.done = (device.event() for _ in range(3))


@dataclass(frozen=True)
class Streams:
    """Where the steps of a batch run: those of three batches at the same time."""

    copy: Stream
    compute: Stream
    encode: Stream

    @classmethod
    def of(cls, device: Device) -> Streams:
        """New ones."""
        return cls(device.stream(), device.stream(), device.stream())

    def synchronize(self) -> None:
        """Wait until nothing is left to do on any of them."""
        for stream in (self.copy, self.compute, self.encode):
            stream.synchronize()
