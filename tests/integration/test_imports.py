# SPDX-License-Identifier: Apache-2.0
"""What is loaded when: nothing heavy at import, no torch for rendering."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import sys, lipsync_fast
dir(lipsync_fast)
print(*sorted({"torch", "onnx", "onnxruntime", "av", "numpy", "cupy", "PIL"} & set(sys.modules)))
"""
RENDER = """
import sys, numpy as np, lipsync_fast
with lipsync_fast.open("demo", backend="cpu") as avatar:
    assert len(list(avatar.render(np.zeros(640, np.int16), 16_000))) == 1
print(*sorted({"torch", "onnx", "cupy", "typer"} & set(sys.modules)))
"""


def loaded(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_import_loads_nothing_heavy() -> None:
    assert loaded(IMPORT) == []


def test_rendering_needs_no_torch() -> None:
    assert loaded(RENDER) == []
