# SPDX-License-Identifier: Apache-2.0
"""Where kernels and networks run: the GPU, or in a dry run the host in its place.

Both sides of every comparison go through this, so that what a dry run has shown to work fails on a
GPU for the GPU's own reasons only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_check.findings import CannotRunError
from lipsync_fast.engine.backends.cuda.device import CudaDevice, Device, HostDevice, load_kernels
from lipsync_fast.errors import LipsyncError

FLUSH_BYTES = 512 << 20
"""Written between two timed runs: several times a GPU's L2 cache, and long enough that the host has
given out the next launch when it ends."""
WARM_UPS = 3


@dataclass(frozen=True)
class Timed:
    """Times of one thing in microseconds."""

    median_us: float
    least_us: float
    p99_us: float
    runs: int

    def row(self, floor_us: float | None = None) -> dict[str, float]:
        """As a row of the report, with the floor and how far above it the median is."""
        row = {
            "median_us": round(self.median_us, 2),
            "least_us": round(self.least_us, 2),
            "p99_us": round(self.p99_us, 2),
            "runs": self.runs,
        }
        if floor_us is not None:
            row["floor_us"] = round(floor_us, 2)
            row["times_floor"] = round(self.median_us / floor_us, 2) if floor_us > 0 else 0.0
        return row


class Target:
    """The device under test.

    Attributes:
        device: as the backend takes it; exact, so that float32 is not TF32.
        kernels: its module.
        emulated: the same kernels on the host.
        dry: it is the host itself.
    """

    def __init__(self, dry: bool, *, exact: bool = True) -> None:
        self.dry = dry
        try:
            self.device: Device = HostDevice() if dry else CudaDevice(0, exact=exact)
            self.emulated = load_kernels("_emulated")
        except LipsyncError as error:
            raise CannotRunError(str(error)) from None
        self.kernels = self.device.kernels
        self.where = self.device.where
        self._flush: torch.Tensor | None = None

    def put(self, array: NDArray[Any]) -> torch.Tensor:
        """A copy of an array on the device."""
        return torch.from_numpy(np.array(array)).to(self.where)

    @property
    def stream(self) -> int:
        """The current stream, as kernels take it."""
        return 0 if self.dry else int(torch.cuda.current_stream(self.where).cuda_stream)

    def wait(self) -> None:
        """Until all is done; raises what has gone wrong."""
        if not self.dry:
            torch.cuda.synchronize(self.where)

    def flush(self) -> None:
        """Put something else into the cache."""
        if self.dry:
            return
        if self._flush is None:
            self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.where)
        self._flush.fill_(int(time.monotonic_ns() & 0xFF))

    def timed(
        self, runs: Sequence[Callable[[], object]], count: int = 60, *, cold: bool = True
    ) -> Timed:
        """Time things that do the same to inputs of their own, in turn.

        Args:
            runs: one for each set of inputs.
            count: of timed runs.
            cold: with other things in the cache.
        """
        if self.dry:
            begun = time.perf_counter()
            runs[0]()
            spent = (time.perf_counter() - begun) * 1e6
            return Timed(spent, spent, spent, 1)
        for k in range(WARM_UPS):
            runs[k % len(runs)]()
        self.wait()
        make: Callable[[], Any] = partial(torch.cuda.Event, enable_timing=True)
        events = [(make(), make()) for _ in range(count)]
        for k, (first, last) in enumerate(events):
            if cold:
                self.flush()
            first.record()
            runs[k % len(runs)]()
            last.record()
        self.wait()
        times = sorted(first.elapsed_time(last) * 1e3 for first, last in events)
        p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
        return Timed(statistics.median(times), times[0], p99, count)


def relative(out: NDArray[Any], ref: NDArray[Any]) -> float:
    """‖out - ref‖ / ‖ref‖; infinite where a number is none."""
    a, b = out.astype(np.float64), ref.astype(np.float64)
    if not np.isfinite(a).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def grey(out: NDArray[np.uint8], ref: NDArray[np.uint8]) -> dict[str, float]:
    """Worst and mean difference in grey levels."""
    difference = np.abs(out.astype(np.int16) - ref.astype(np.int16))
    return {"worst": int(difference.max()), "mean": round(float(difference.mean()), 4)}
