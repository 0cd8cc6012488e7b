# SPDX-License-Identifier: Apache-2.0
"""Plots of a report: ``python -m gpu_check.plots report.json FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gpu_check.goals import LIVE_P99_MS
from gpu_check.report import values


def draw(report: Path, folder: Path) -> list[Path]:
    """Draw what there is to draw; which files were written."""
    found = values(json.loads(report.read_text())["parts"])
    wanted = {"batches.png": _batches, "live.png": _live, "kernels.png": _kernels}
    written = []
    for name, make in wanted.items():
        path = folder / name
        path.unlink(missing_ok=True)
        figure = make(found)
        if figure is not None:
            figure.tight_layout()
            figure.savefig(path, dpi=100)
            written.append(path)
    return written


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _batches(found: Any) -> Any:
    """Frames a second and latencies over how many jobs are given at a time."""
    engine = found.get("engine") or {}
    loops = {k: v["closed loop"] for k, v in engine.items() if "closed loop" in (v or {})}
    if not loops:
        return None
    figure, (above, below) = _pyplot().subplots(2, 1, figsize=(8, 8), sharex=True)
    for name, rows in loops.items():
        sizes = [int(size) for size in rows]
        above.plot(sizes, [row["frames_per_s"] for row in rows.values()], "o-", label=name)
        below.plot(sizes, [row["p50_ms"] for row in rows.values()], "o-", label=f"{name}, p50")
        below.plot(sizes, [row["p99_ms"] for row in rows.values()], "x--", label=f"{name}, p99")
        free = engine[name].get("free", {}).get("frames_per_s")
        if free:
            above.axhline(free, ls=":", lw=0.8, c="0.4")
    above.set_ylabel("frames/s (dotted: free-running)")
    below.set_ylabel("ms")
    below.set_xlabel("jobs at a time")
    for axis in (above, below):
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.legend()
    return figure


def _live(found: Any) -> Any:
    """Latencies over how many sessions there are."""
    rows = (found.get("live") or {}).get("sessions")
    if not rows:
        return None
    figure, axis = _pyplot().subplots(figsize=(8, 5))
    counts = [int(count) for count in rows]
    for name in ("p50_ms", "p99_ms", "most_ms"):
        axis.plot(counts, [row[name] for row in rows.values()], "o-", label=name)
    axis.axhline(LIVE_P99_MS, ls=":", c="0.4", label="goal for p99")
    axis.set_xlabel("live sessions of 25 frames/s")
    axis.set_ylabel("last needed sample to ring, ms")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def _kernels(found: Any) -> Any:
    """Times over their floors."""
    parts = found.get("kernels") or {}
    rows = {**parts.get("kernels", {}), **parts.get("networks", {})}
    rows = {name: row for name, row in rows.items() if row.get("floor_us")}
    if not rows:
        return None
    figure, axis = _pyplot().subplots(figsize=(9, 1 + 0.25 * len(rows)))
    names = list(rows)[::-1]
    axis.barh(names, [rows[name]["median_us"] for name in names], color="C0", label="measured")
    axis.barh(names, [rows[name]["floor_us"] for name in names], color="C1", label="floor")
    axis.set_xscale("log")
    axis.set_xlabel("microseconds")
    axis.legend()
    return figure


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
