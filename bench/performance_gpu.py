# SPDX-License-Identifier: Apache-2.0
"""The part of docs/performance.md about GPUs: goals, what is predicted, and what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parent))

from gpu_check import goals  # noqa: E402 (it lies beside this file)

WEIGHTS_MB = 2 * (12_186_935 + 2_812_672) / 1e6
"""Megabytes of the reference's U-Net and audio encoder in 16 bits."""


def load(name: str) -> Any:
    """A result; None where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


def predictions(simulated: Any) -> dict[str, str]:
    """What is expected of a goal, by its name in ``gpu_check.goals``."""
    capacity = simulated["capacity"]
    sets = ("expected", "careful", "hopeful")
    rate = [f"{capacity[name]:,.0f}" for name in sets]
    on_one = {m["set"]: m["ours"] for m in simulated["most"] if m["gpus"] == 1}
    first = [simulated["times"][name] for name in sets]
    one = [f"{t['batch_ms']['1'] + t['wake_us'] / 1e3:.1f}" for t in first]
    return {
        "throughput": f"{rate[0]} frames/s ({rate[1]} to {rate[2]})",
        "live": "{} sessions ({} to {})".format(*(on_one[name] for name in sets)),
        "single": f"{one[0]} ms ({one[2]} to {one[1]})",
        "memory": f"{WEIGHTS_MB:.0f} MB of weights, and what its captured graphs need",
    }


def chapter() -> list[str]:
    """The lines of the chapter."""
    report, simulated = load("gpu/report.json"), load("simulate/simulate.json")
    lines = ["", "## GPUs", ""]
    parts: dict[str, Any] = {}
    if report is None:
        lines.append(
            "**Not yet measured: none of this has run on a GPU.** What is predicted rests on"
            " counted multiply-adds and bytes at assumed shares of one H200's rates"
            " (`bench/predict.py`, `bench/results/simulate/predicted.json`);"
            " in brackets what careful and hopeful assumptions give."
            " `bash bench/gpu_check.sh` measures it."
        )
    else:
        parts = {name: part.get("values", {}) for name, part in report["parts"].items()}
        lines.append("Measured by `bash bench/gpu_check.sh`: `bench/results/gpu/report.md`.")
    lines += ["", "| what, on one H200 | goal | predicted | measured | |", "|---|---|---|---|---|"]
    expected = predictions(simulated)
    for goal, line in zip(goals.GOALS, goals.table(parts), strict=True):
        predicted = expected.get(goal.__name__, "")
        found = "not yet measured" if line.verdict == "not measured" else line.found
        verdict = {"missed": "**missed**", "not measured": ""}.get(line.verdict, line.verdict)
        lines.append(f"| {line.what} | {line.goal} | {predicted} | {found} | {verdict} |")
    lines += [
        "",
        f"Many GPUs, by `{simulated['command']}` ({simulated['what']}): live sessions that one to"
        " eight of them serve with p99 below 40 ms and fewer than one frame in a thousand late, by"
        " our placement and batches, and by one perfect queue for all.",
        "",
        "| assumptions | GPUs | sessions | perfect |",
        "|---|---|---|---|",
    ]
    for m in simulated["most"]:
        lines.append(f"| {m['set']} | {m['gpus']} | {m['ours']:,} | {m['perfect']:,} |")
    lines += ["", "![Throughput and p99 over sessions](../bench/results/simulate/simulate.png)"]
    return lines
