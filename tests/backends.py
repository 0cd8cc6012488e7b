# SPDX-License-Identifier: Apache-2.0
"""Every backend that a machine without a GPU can run, for tests of what all of them promise."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsync_fast.engine.backends import Backend, create_backend

NAMES = ("cpu", "emulated")
APART = {"cpu": 0, "emulated": 1}
"""Grey levels by which a picture may differ where it was made in another batch: the convolutions of
torch sum up in an order that depends on its size."""


def make(
    name: str,
    threads: int = 2,
    *,
    live: bool = False,
    precision: Literal["fp16", "bf16", "fp32"] = "fp32",
) -> Backend:
    """The CPU backend; or "emulated": the CUDA backend with the host in a GPU's place."""
    if name != "emulated":
        return create_backend(name, threads, live=live)
    pytest.importorskip("torch", reason="the CUDA backend needs torch")
    from lipsync_fast.engine.backends.cuda.backend import CudaBackend
    from lipsync_fast.engine.backends.cuda.device import HostDevice

    return CudaBackend(HostDevice(), precision=precision, live=live)


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """The largest one of two pictures, in grey levels."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())
