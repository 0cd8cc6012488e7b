# SPDX-License-Identifier: Apache-2.0
"""Measured numbers in JSON as people can read them: 60.7 and not 60.69999999999709."""

from __future__ import annotations

from typing import Any

import msgspec


def rounded(value: Any) -> Any:
    """Structs and what else JSON can hold as plain values, each float with three digits.

    Three behind the point; of numbers below a tenth the first three that are not 0. For what was
    measured: what must come back bit by bit is not given to this.
    """
    return _rounded(msgspec.to_builtins(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3) if abs(value) >= 0.1 else float(f"{value:.3g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return value
