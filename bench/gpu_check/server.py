# SPDX-License-Identifier: Apache-2.0
"""The whole server with engines on the GPU, by the benchmark of the package itself."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from gpu_check.context import Context, run
from gpu_check.findings import CannotRunError

NEEDED = (
    "msgspec",
    "trio",
    "zmq",
    "websockets",
    "starlette",
    "hypercorn",
    "soxr",
    "av",
)
LIMIT_S = 105


def main(context: Context) -> None:
    """``lipsync-fast bench --backend cuda``, in part; in a dry run, whether it would begin."""
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise CannotRunError(f"not installed: {', '.join(lacking)}")
    program = [sys.executable, "-m", "lipsync_fast"]
    env = os.environ | {"COLUMNS": "160", "NO_COLOR": "1"}
    status, _ = run([*program, "doctor"], 60, env=env, cwd=context.work)
    context.found.check("doctor runs", status is not None)
    if context.dry:
        status, text = run([*program, "bench", "--help"], 30, env=env, cwd=context.work)
        known = all(word in text for word in ("--backend", "--quick", "--gpus", "--out"))
        context.found.check("the benchmark has the options", status == 0 and known)
        return
    out = context.work / "bench"
    told = "--backend cuda --gpus all --quick --rounds 1 --part demo --part live --duration 5"
    command = [*program, "bench", *told.split(), "--out", str(out)]
    status, text = run(command, LIMIT_S, env=env, cwd=context.work)
    words = "no result in time" if status is None else text.strip()[-300:]
    # Its status is that of comparing frames with the CPU's, bit for bit: here they may differ.
    context.found.check("the benchmark has run", (out / "run.json").is_file(), words)
    _keep(context, out)


def _keep(context: Context, out: Path) -> None:
    """Its rows."""
    for path in sorted(out.glob("*.json")) if out.is_dir() else []:
        document = json.loads(path.read_text())
        context.found.value("sentence", value=str(document.get("sentence", "")))
        for row in document.get("rows", []):
            context.found.value("rows", str(row.get("name")), value=_flat(row))


def _flat(row: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in row.items() if isinstance(v, int | float | str) and k != "name"}
