# SPDX-License-Identifier: Apache-2.0
"""Small runs of every kernel under compute-sanitizer: bad accesses, races, reads of nothing."""

from __future__ import annotations

import os
import re
import sys

from gpu_check.context import Context, needed, run

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
LIMIT_S = 60
FAULT = 66


def main(context: Context) -> None:
    """All four tools; in a dry run, what they would watch."""
    command = [sys.executable, "-m", "gpu_check.small", *(["--dry-run"] if context.dry else [])]
    if context.dry:
        status, text = run(command, LIMIT_S, cwd=context.work)
        context.found.check("the small runs, unwatched", status == 0, text[-200:])
        return
    program = needed("compute-sanitizer")
    # Torch's allocator would hide what is beyond a tensor, and what was never written.
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in TOOLS:
        with context.found.attempt(tool):
            status, text = run(
                [program, "--tool", tool, "--error-exitcode", str(FAULT), "--print-limit", "20",
                 *(["--report-api-errors", "no"] if tool == "memcheck" else []), *command],
                LIMIT_S,
                env=env,
                cwd=context.work,
            )  # fmt: skip
            verdict, words = judged(status, text)
            if verdict is None:
                context.found.fact(tool, words)
            else:
                context.found.check(tool, verdict, words)


def judged(status: int | None, text: str) -> tuple[bool | None, str]:
    """Whether a run was clean, None where the tool could not watch it; and in words."""
    if status is None:
        return None, f"not done within {LIMIT_S} s"
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: ([^\n]*)", text)
    words = summary[-1].strip() if summary else f"exit status {status}, no summary"
    if status == FAULT:
        return False, words
    if not summary:
        return None, f"{words}; its last words: {text.strip()[-200:]}"
    return status == 0, words if status == 0 else f"{words}, exit status {status}"
