# SPDX-License-Identifier: Apache-2.0
"""What every training asks before it begins: where it may write, on what, if it may go on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from lipsync_fast.errors import OutputError, TrainingError
from lipsync_fast.train.options import Device, Options, Precision, differing
from lipsync_fast.train.state import State, Work

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_out(out: Path, *, force: bool) -> None:
    """Refuse before hours of work what would be refused behind them.

    Raises:
        OutputError: there is something, or there can be nothing.
    """
    if out.exists() and not force:
        raise OutputError(f"{out}: already exists; --force replaces it")
    name = out.name.removesuffix(".lsa")
    if not _NAME.fullmatch(name):
        raise OutputError(
            f"--out: {name[:80]!r} cannot be an avatar's name (at most 64 letters, digits, . _ -)"
        )
    parent = nearest_folder(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: cannot be written ({parent} is not a folder to write to)")


def nearest_folder(path: Path) -> Path:
    """What there is already of the folders above a path."""
    return next(p for p in path.absolute().parents if p.exists())


def device_of(wanted: str) -> Device:
    """What trains.

    Raises:
        TrainingError: there is none such.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"--device {wanted}: expected auto, cpu or cuda")
    there = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise TrainingError("--device cuda: torch finds no GPU here (or is a build without CUDA)")
    return "cuda" if there else "cpu"


def precision_of(wanted: str, device: Device) -> Precision:
    """In what it is computed.

    Raises:
        TrainingError: there is none such.
    """
    match wanted:
        case "auto" if device == "cpu":
            return "fp32"
        case "auto":
            return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
        case "fp32" | "fp16" | "bf16":
            return wanted
    raise TrainingError(f"--precision {wanted}: expected auto, fp32, fp16 or bf16")


def check_former(former: State | None, options: Options, work: Work, changed: str) -> None:
    """Whether a former training can go on so.

    Args:
        changed: which data have changed since; empty for none.

    Raises:
        TrainingError: it cannot.
    """
    if former is None:
        return
    reasons = differing(former.options, options) + [changed] * bool(changed)
    if reasons:
        raise TrainingError(
            f"{work.folder}: a training of {former.step} steps lies here that cannot go on so:"
            f" {'; '.join(reasons)}; give the former options, or --restart to forget it"
        )
