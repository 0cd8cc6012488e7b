# SPDX-License-Identifier: Apache-2.0
"""Draw what live.py and soak.py have measured.

    python bench/plots.py live.json [soak.json …]       # writes live.png, soak.png beside them

Needs matplotlib, which is no dependency of the package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def draw(path: Path) -> bool:
    """Draw a report's plot beside it; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print(f"no plot of {path.name}: matplotlib is not installed", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = json.loads(path.read_text())
    kinds = {"rows": _soak, "churn": _churn}
    figure = next((kinds[key] for key in kinds if key in result), _live)(plt, result)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=100)
    plt.close(figure)
    return True


def _live(plt: Any, result: dict[str, Any]) -> Any:
    """Latency of spoken frames, gaps between frames, resident memory; kills as lines."""
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(11, 9), sharex=True)
    rows = result["windows"]
    minutes = [row["s"] / 60 for row in rows]
    for name in ("p50", "p99", "most"):
        top.plot(minutes, [row.get(f"latency_{name}") for row in rows], label=name)
    top.axhline(80, c="0.3", lw=0.8, ls=":")
    top.set_ylabel("last needed sample\nto bytes, ms")
    top.legend(loc="upper left", fontsize=8)
    middle.plot(minutes, [row["gap_most"] for row in rows], c="C1")
    middle.set_ylabel("longest gap\nbetween frames, ms")
    names = sorted({name for row in result["curve"] for name in row if name != "s"})
    for name in names:
        have = [row for row in result["curve"] if name in row]
        bottom.plot([r["s"] / 60 for r in have], [r[name]["rss_mb"] for r in have], label=name)
    bottom.set_ylabel("resident, MB")
    if 0 < len(names) <= 8:
        bottom.legend(loc="center left", fontsize=8)
    for axis in (top, middle, bottom):
        axis.set_ylim(bottom=0)
        for kill in result["kills"]:
            axis.axvline(kill["s"] / 60, c="0.7", lw=0.6)
    bottom.set_xlabel("minutes")
    figure.suptitle(f"{result['sessions']} live sessions; grey lines: kill -9 of an engine")
    return figure


def _soak(plt: Any, result: dict[str, Any]) -> Any:
    """Memory, descriptors and threads by role, /dev/shm, and connections, over time."""
    figure, axes = plt.subplots(5, 1, figsize=(11, 14), sharex=True)
    rows = result["rows"]
    minutes = [row["s"] / 60 for row in rows]
    roles = sorted({name for row in rows for name in row["roles"]})
    labels = {
        "private_mb": "private memory, MB",
        "shm_mb": "shared memory, MB",
        "descriptors": "descriptors",
        "threads": "threads",
    }
    for axis, (what, label) in zip(axes, labels.items(), strict=False):
        for role in roles:
            axis.plot(minutes, [row["roles"].get(role, {}).get(what) for row in rows], label=role)
        axis.set_ylabel(label)
        axis.legend(loc="upper left", fontsize=8)
    for what, label in (
        ("dev_shm_files", "/dev/shm, files"),
        ("dev_shm_mb", "/dev/shm, MB"),
        ("connections", "connections"),
    ):
        axes[4].plot(minutes, [row.get(what) for row in rows], label=label, lw=0.7)
    axes[4].legend(loc="upper left", fontsize=8)
    for axis in axes:
        axis.set_ylim(bottom=0)
        for at in result["kills_s"]:
            axis.axvline(at / 60, c="0.85", lw=0.5)
    axes[4].set_xlabel("minutes; grey lines: kill -9 of an engine")
    return figure


def _churn(plt: Any, result: dict[str, Any]) -> Any:
    """Memory and descriptors of each process while avatars are loaded and unloaded."""
    figure, axes = plt.subplots(3, 1, figsize=(11, 9), sharex=True)
    rows = result["churn"]
    roles = sorted({name for row in rows for name in row["roles"]})
    labels = {"private_mb": "private memory, MB", "descriptors": "descriptors"}
    for axis, (what, label) in zip(axes, labels.items(), strict=False):
        for role in roles:
            values = [row["roles"].get(role, {}).get(what) for row in rows]
            axis.plot([row["s"] for row in rows], values, label=role)
        axis.set_ylabel(label)
        axis.legend(loc="center left", fontsize=8)
    axes[2].plot([row["s"] for row in rows], [row["versions"] for row in rows])
    axes[2].set_ylabel("versions that engines hold")
    for axis in axes:
        axis.set_ylim(bottom=0)
        for at in result["rounds_s"]:
            axis.axvline(at, c="0.7", lw=0.8)
    axes[2].set_xlabel("seconds; grey lines: rounds begin and end")
    count = result["rounds"]
    figure.suptitle(f"{count} rounds of load, replace, unload; two sessions speak all the time")
    return figure


if __name__ == "__main__":
    sys.exit(0 if all(draw(Path(name)) for name in sys.argv[1:]) else 1)
