# SPDX-License-Identifier: Apache-2.0
"""Backends: the same small interface on every device."""

from __future__ import annotations

from lipsync_fast.engine.backends.base import Backend, LoadedAvatar, RegionJob
from lipsync_fast.errors import BackendError

__all__ = ["CHOICES", "Backend", "LoadedAvatar", "RegionJob", "create_backend"]

CHOICES = ("auto", "cpu", "cuda")


def create_backend(
    choice: str = "auto",
    threads: int | None = None,
    *,
    live: bool = False,
    kernels: str = "auto",
) -> Backend:
    """The backend of that name; ``auto`` is the fastest that runs here (today always the CPU's).

    Args:
        choice: one of CHOICES.
        threads: of the CPU backend; all processors by default.
        kernels: of the CPU backend, see ``decoder.choose_kernel``.
        live: frames of an avatar will be asked for again and again, and some are urgent.

    Raises:
        BackendError: unknown, or it cannot run here.
    """
    if choice not in CHOICES:
        raise BackendError(f"backend {choice!r}: expected one of {', '.join(CHOICES)}")
    if choice == "cuda":
        raise BackendError("the CUDA backend is not part of this version; use --backend cpu")
    from lipsync_fast.engine.backends.cpu import CpuBackend

    return CpuBackend(threads, live=live, kernels=kernels)
