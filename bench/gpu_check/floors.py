# SPDX-License-Identifier: Apache-2.0
"""What this card can do at best, measured in this run: the ground for all that follows.

Bytes of a copy are counted twice, read and written. Matrices hold random numbers: zeros are faster.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_check.context import Context
from gpu_check.target import Target, Timed

COPY_BYTES = 4 << 30
MATRIX = 8192
PCIE_BYTES = 256 << 20


def main(context: Context) -> None:
    """Measure all of them."""
    target, found = Target(context.dry), context.found
    with found.attempt("copy on the device"):
        size = 1 << 20 if context.dry else COPY_BYTES
        numbers = torch.randint(0, 255, (size,), dtype=torch.uint8, device=target.where)
        into = torch.empty_like(numbers)
        copy = partial(into.copy_, numbers)
        timed = target.timed([copy], 20, cold=False)
        found.value("copy", value=_rate(timed, 2 * size / 1e9, "GB_per_s"))
        found.check("the copy is one", torch.equal(into, numbers))
        del numbers, into, copy
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        with found.attempt(f"matrix product {name}"):
            side = 128 if context.dry else MATRIX
            a, b = (torch.randn(side, side, device=target.where).to(dtype) for _ in range(2))
            timed = target.timed([partial(torch.matmul, a, b)], 20, cold=False)
            found.value(f"matrix {name}", value=_rate(timed, 2 * side**3 / 1e12, "TFLOP_per_s"))
    with found.attempt("copies between host and device"):
        _between(context, target)
    with found.attempt("a launch"):
        one = torch.zeros(1, device=target.where)
        timed = target.timed([partial(one.add_, 1)], 500, cold=False)
        found.value("launch", value=timed.row())
        found.check("launches have run", float(one) > 0)


def _between(context: Context, target: Target) -> None:
    size = 1 << 20 if context.dry else PCIE_BYTES
    host = torch.randint(0, 255, (size,), dtype=torch.uint8)
    host = host if context.dry else host.pin_memory()
    device = torch.empty_like(host, device=target.where)
    up = target.timed([lambda: device.copy_(host, non_blocking=True)], 20, cold=False)
    context.found.value("host to device", value=_rate(up, size / 1e9, "GB_per_s"))
    back = torch.empty_like(host) if context.dry else torch.empty_like(host).pin_memory()
    down = target.timed([lambda: back.copy_(device, non_blocking=True)], 20, cold=False)
    context.found.value("device to host", value=_rate(down, size / 1e9, "GB_per_s"))
    context.found.check("what came back is what was sent", torch.equal(back, host))


def _rate(timed: Timed, amount: float, unit: str) -> dict[str, float]:
    return {unit: round(amount / (timed.median_us * 1e-6), 1), **timed.row()}


class Floors:
    """The floors as other parts use them; 0 for what was not measured."""

    def __init__(self, work: Path) -> None:
        try:
            values: dict[str, Any] = json.loads((work / "floors.json").read_text())["values"]
        except (OSError, ValueError, KeyError):
            values = {}
        self._bytes_per_us = values.get("copy", {}).get("GB_per_s", 0.0) * 1e3
        self._operations_per_us = {
            kind: values.get(f"matrix {kind}", {}).get("TFLOP_per_s", 0.0) * 1e6
            for kind in ("fp16", "bf16")
        }

    def moving(self, count: float) -> float | None:
        """Microseconds in which so many bytes can be read or written."""
        return count / self._bytes_per_us if self._bytes_per_us else None

    def computing(self, operations: float, kind: str = "fp16") -> float | None:
        """Microseconds in which the matrix units can do so many operations (2 a MAC)."""
        rate = self._operations_per_us[kind]
        return operations / rate if rate else None
