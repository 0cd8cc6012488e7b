# SPDX-License-Identifier: Apache-2.0
"""One launch of each kernel under ncu: what of the card it uses."""

from __future__ import annotations

import csv
import sys

from gpu_check.build import short_name
from gpu_check.context import Context, needed, run
from gpu_check.findings import CannotRunError

METRICS = {
    "gpu__time_duration.sum": "us",
    "dram__bytes_read.sum": "read_MB",
    "dram__bytes_write.sum": "written_MB",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
}
_SCALE = {
    "nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3,
    "byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1.0, "Gbyte": 1e3,
}  # fmt: skip
"""To microseconds and megabytes."""
LIMIT_S = 55


def main(context: Context) -> None:
    """Profile; in a dry run, run what would be profiled."""
    command = [sys.executable, "-m", "gpu_check.small", "--once"]
    if context.dry:
        status, _ = run([*command, "--dry-run"], LIMIT_S, cwd=context.work)
        context.found.check("the launches, not profiled", status == 0)
        return
    status, text = run(
        [needed("ncu"), "--clock-control", "none", "--csv", "--page", "raw", "--metrics",
         ",".join(METRICS), "--print-kernel-base", "mangled", "--kernel-name-base", "mangled",
         "--kernel-name", "regex:lipsync",
         "--launch-count", "12", *command],
        LIMIT_S,
        cwd=context.work,
    )  # fmt: skip
    rows = parsed(text)
    if not rows:
        raise CannotRunError(f"ncu measured nothing (exit status {status}): {text[-200:]}")
    for name, row in rows.items():
        context.found.value("counters", name, value=row)


def parsed(text: str) -> dict[str, dict[str, float]]:
    """Rows of ncu's raw page: a line of names, one of units, one for each launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return {}
    names, units, *launches = csv.reader(lines)
    found: dict[str, dict[str, float]] = {}
    for launch in launches:
        cells = dict(zip(names, launch, strict=False))
        of = dict(zip(names, units, strict=False))
        row = {}
        for metric, word in METRICS.items():
            try:
                number = float(cells[metric].replace(",", ""))
            except (KeyError, ValueError):
                continue
            row[word] = round(number * _SCALE.get(of.get(metric, ""), 1.0), 2)
        found[f"{short_name(cells.get('Kernel Name', '?'))} ({cells.get('ID', '?')})"] = row
    return found
