# SPDX-License-Identifier: Apache-2.0
"""Backends: the same small interface on every device."""

from __future__ import annotations

import re
from typing import Literal

from lipsync_fast.engine.backends.base import (
    Backend,
    Coded,
    Encode,
    LoadedAvatar,
    RegionJob,
    Sound,
)
from lipsync_fast.errors import BackendError

__all__ = [
    "CHOICES",
    "Backend",
    "Coded",
    "Encode",
    "LoadedAvatar",
    "RegionJob",
    "Sound",
    "create_backend",
]

CHOICES = ("auto", "cpu", "cuda")


def create_backend(
    choice: str = "auto",
    threads: int | None = None,
    *,
    live: bool = False,
    kernels: str = "auto",
    precision: Literal["fp16", "bf16", "fp32"] = "fp16",
) -> Backend:
    """The backend of that name; ``auto`` is that of the first GPU that can be used, else the CPU's.

    Args:
        choice: one of CHOICES, or ``cuda:N`` for a GPU by its number; ``cuda`` is ``cuda:0``.
        threads: of the CPU backend; all processors by default.
        kernels: of the CPU backend, see ``decoder.choose_kernel``.
        precision: of the CUDA backend's networks; the CPU's compute in fp32.
        live: frames of an avatar will be asked for again and again, and some are urgent.

    Raises:
        BackendError: unknown, or it cannot run here.
    """
    gpu = re.fullmatch(r"cuda(?::(\d{1,3}))?", choice)
    if gpu is None and choice not in CHOICES:
        raise BackendError(f"backend {choice!r}: expected one of {', '.join(CHOICES)}, or cuda:N")
    if choice != "cpu":
        from lipsync_fast.engine.backends import cuda

        if gpu is not None or cuda.usable_gpus():
            number = int(gpu[1] or 0) if gpu is not None else 0
            return cuda.create(number, precision=precision, live=live)
    from lipsync_fast.engine.backends.cpu import CpuBackend

    return CpuBackend(threads, live=live, kernels=kernels)
