# SPDX-License-Identifier: Apache-2.0
"""In what precision networks run while they are trained."""

from __future__ import annotations

import torch

HALVES = any(torch.cpu.get_capabilities().get(unit) for unit in ("avx512_bf16", "amx_bf16"))
"""Whether this processor computes with bfloat16. Where it only emulates it, float32 is 7 to 8 times
as fast."""


def autocast() -> torch.autocast:
    """bfloat16 where that is fast, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HALVES)
