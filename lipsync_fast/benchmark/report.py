# SPDX-License-Identifier: Apache-2.0
"""A benchmark's report for people: Markdown, and plots where matplotlib is installed."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from lipsync_fast.benchmark.rows import Report, Row, Spread, by_name, ratios
from lipsync_fast.errors import OutputError
from lipsync_fast.whole_files import write_whole


def write(report: Report, folder: Path) -> list[Path]:
    """Write run.json, run.md and, with matplotlib, run.png; each appears whole.

    Raises:
        OutputError: they cannot be written.
    """
    done = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (
            ("run.json", msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"),
            ("run.md", markdown(report).encode()),
        ):
            write_whole(folder / name, data)
            done.append(folder / name)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    if draw(report, folder / "run.png"):
        done.append(folder / "run.png")
    return done


COLOURS = [*(f"C{k}" for k in range(10)), "0.2", "gold", "navy", "tan", "lime", "salmon"]
FAST = "peer", "ours", "throughput"
"""Kinds of what is measured as fast as it goes."""


# ---------------------------------------------------------------- tables
def markdown(report: Report) -> str:
    """Everything that was measured, as tables."""
    about = report.machine
    lines = [
        f"# {report.sentence}",
        "",
        f"`{report.command}`, lipsync-fast {report.version} {report.commit}, {report.date}, on "
        f"{about.get('cores')} cores of {about.get('processor')}, Python {about.get('python')}; "
        f"load average at the beginning {about.get('load_average', ['?'])[0]}. Server and load "
        "generator share the machine. Rates are medians of the rounds, with least and most.",
        "",
    ]
    lines += [f"Not measured: {words}." for words in report.not_measured]
    rows = by_name(report.rows)
    peers = {key: some for key, some in rows.items() if key[0] in ("peer", "ours")}
    if peers:
        lines += ["## The reference's network, in turn", ""]
        lines += _table(
            ("way of working", "frames/s", "ours against it", "rounds"),
            [
                (name, _spread(some), _ratio(report, kind, name), str(len(some)))
                for (kind, name), some in peers.items()
            ],
        )
    fast = {key: some for key, some in rows.items() if key[0] == "throughput"}
    if fast:
        lines += ["## Frames as fast as they come", ""]
        lines += _table(
            (
                "what",
                "frames/s",
                "kB a frame",
                "engine, ms",
                "front, µs",
                "generator, µs",
                "compared, different",
            ),
            [_throughput(name, some) for (_, name), some in fast.items()],
        )
    sweeps = {name: some for (kind, name), some in rows.items() if kind == "sweep"}
    if sweeps:
        lines += ["## Cost over work", ""]
        lines += _table(
            ("what", "frames/s", "first frame, ms", "engine, ms a frame", "front, MB"),
            [_sweep(name, some) for name, some in sweeps.items()],
        )
    live = [row for row in report.rows if row.kind == "live"]
    if live:
        lines += ["## Sessions in real time", ""]
        lines += _table(
            (
                "what",
                "utterances, refused",
                "frames due, late, lost",
                "latency p50, p99, p99.9 ms",
                "frames/s",
            ),
            [_live(row) for row in live],
        )
    lines += _profile(report.rows)
    lines += ["## Memory at the end of each measurement, MB of its own (shared)", ""]
    lines += _table(
        ("what", "processes"),
        [
            (
                row.name,
                ", ".join(
                    f"{who} {mb:.0f} ({row.shared_mb.get(who, 0):.0f})"
                    for who, mb in row.private_mb.items()
                ),
            )
            for row in _last_of_each(report.rows)
            if row.private_mb
        ],
    )
    bad = [row for row in report.rows if not row.is_right]
    if bad:
        lines += ["## Wrong", ""]
        lines += [f"- {row.name}, round {row.round}: {row.wrong or row}" for row in bad] + [""]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    made = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*made, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _spread(rows: Sequence[Row]) -> str:
    found = Spread.of(row.frames_per_s for row in rows)
    if found.rounds == 1:
        return f"{found.median:.1f}"
    return f"**{found.median:.2f}** ({found.least:.2f} to {found.most:.2f})"


def _ratio(report: Report, kind: str, name: str) -> str:
    found = ratios(report.rows, name) if kind == "peer" else []
    if not found:
        return ""
    spread = Spread.of(found)
    return f"**{spread.median:.1f}x** ({spread.least:.1f} to {spread.most:.1f})"


def _median(rows: Sequence[Row], role: str) -> float:
    return statistics.median(row.cpu_ms_per_frame.get(role, 0.0) for row in rows)


def _throughput(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    return (
        name,
        _spread(rows),
        f"{rows[0].bytes_per_frame / 1e3:.0f}",
        f"{_median(rows, 'engine'):.2f}",
        f"{1e3 * _median(rows, 'front'):.0f}",
        f"{1e3 * _median(rows, 'load generator'):.0f}",
        f"{sum(r.compared for r in rows)}, {sum(r.different for r in rows)}",
    )


def _live(row: Row) -> tuple[str, ...]:
    values = [row.latency_ms[k] for k in ("p50", "p99", "p99.9") if k in row.latency_ms]
    return (
        row.name,
        f"{row.settings.get('utterances', 0)}, {row.refused}",
        f"{row.expected}, {row.late}, {row.lost}",
        ", ".join(f"{v:.1f}" for v in values),
        f"{row.frames_per_s:.1f}",
    )


def _sweep(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    first = [row.latency_ms["first"] for row in rows if "first" in row.latency_ms]
    return (
        name,
        _spread(rows),
        f"{statistics.median(first):.0f}" if first else "",
        f"{_median(rows, 'engine'):.2f}",
        f"{max(mb for row in rows for who, mb in row.private_mb.items() if 'front' in who):.0f}",
    )


def _profile(rows: Sequence[Row]) -> list[str]:
    """Where a frame's time and its processor time go."""
    lines: list[str] = []
    for row in (r for r in rows if r.hops_ms):
        whole = sum(row.hops_ms.values())
        lines += [f"## One frame's way, hop by hop: {row.name}", ""]
        table = [(k, f"{v:.2f}", f"{v / whole:.0%}") for k, v in row.hops_ms.items()]
        lines += _table(("hop", "ms, mean", "share"), table)
        lines += [
            f"Together {whole:.2f} ms, over {row.traced} traced frames; the clients alone measured "
            f"{row.mean_ms:.2f} ms over all frames that see no further than the sound "
            f"({whole / row.mean_ms - 1:+.1%}).",
            "",
        ]
    fast = [r for r in rows if r.engine_ms_per_frame and r.kind == "throughput"]
    for row in [*fast[:1], *(r for r in rows if r.hops_ms and r.engine_ms_per_frame)]:
        parts, whole = row.engine_ms_per_frame, row.cpu_ms_per_frame["engine"]
        lines += [f"## One frame's processor time in the engine: {row.name}", ""]
        largest = sorted(parts.items(), key=lambda item: -item[1])
        lines += _table(
            ("part", "ms", "share"), [(k, f"{v:.2f}", f"{v / whole:.0%}") for k, v in largest if v]
        )
        known = sum(parts.values())
        lines += [
            f"Together {known:.2f} ms of {whole:.2f} ms that the process used "
            f"({known / whole:.0%}); the rest is the loop itself.",
            "",
        ]
    return lines


def _last_of_each(rows: Sequence[Row]) -> list[Row]:
    return [some[-1] for some in by_name(rows).values()]


# ---------------------------------------------------------------- plots
def draw(report: Report, path: Path) -> bool:
    """The plots in one picture; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = by_name(report.rows)
    wanted: tuple[tuple[Callable[[Any, dict[tuple[str, str], list[Row]]], None], bool], ...] = (
        (_draw_rates, any(row.kind in FAST for row in report.rows)),
        (_draw_sweeps, any(row.kind == "sweep" for row in report.rows)),
        (_draw_live, any(_is_loaded(row) for row in report.rows)),
        (_draw_hops, any(row.hops_ms for row in report.rows)),
        (_draw_time, any(row.kind in FAST and row.cpu_ms_per_frame for row in report.rows)),
    )
    panels = [panel for panel, there in wanted if there]
    if not panels:
        return False
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, 4.2 * len(panels)), squeeze=False)
    for panel, axis in zip(panels, axes[:, 0], strict=True):
        panel(axis, rows)
    figure.suptitle(f"{report.machine.get('processor')}, {report.machine.get('cores')} cores")
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    with Image.open(drawn) as image:
        image.convert("RGB").save(path, "PNG", optimize=True)
    return True


def _is_loaded(row: Row) -> bool:
    return row.kind == "live" and row.expected > 0 and not row.hops_ms


def _draw_rates(axis: Any, rows: dict[tuple[str, str], list[Row]]) -> None:
    """Frames a second of everything, with the spread over the rounds."""
    found = {
        name: Spread.of(row.frames_per_s for row in some)
        for (kind, name), some in rows.items()
        if kind in FAST
    }
    names = list(found)[::-1]
    middle = [found[n].median for n in names]
    low = [found[n].median - found[n].least for n in names]
    high = [found[n].most - found[n].median for n in names]
    colours = ["0.6" if ("peer", n) in rows else "C0" for n in names]
    axis.barh(names, middle, xerr=[low, high], color=colours, ecolor="0.3", capsize=2)
    for k, value in enumerate(middle):
        axis.text(value + high[k], k, f" {value:.1f}", va="center", fontsize=8)
    axis.set_xlabel("frames/s, end to end (grey: peers)")
    axis.margins(x=0.1)


def _draw_live(axis: Any, rows: dict[tuple[str, str], list[Row]]) -> None:
    """Latency over load."""
    last = [some[-1] for (kind, _), some in rows.items() if kind == "live"]
    live = [row for row in last if _is_loaded(row)]
    sessions = [int(row.settings["sessions"]) for row in live]
    for name in ("p50", "p99", "p99.9"):
        axis.plot(sessions, [row.latency_ms.get(name) for row in live], "o-", label=name)
    for row, count in zip(live, sessions, strict=True):
        said = int(row.settings.get("utterances", 0))
        words = f" {said - row.refused} of {said} utterances taken, {row.late} frames late"
        axis.annotate(words, (count, 0), fontsize=7, rotation=90)
    axis.axhline(80, c="0.3", lw=0.8, ls=":")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sessions, [str(s) for s in sessions])
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
    axis.set_xlabel("sessions that want to speak")
    axis.set_ylabel("last needed sample to bytes, ms")
    axis.legend(fontsize=8, loc="upper center", ncols=3)


def _draw_sweeps(axis: Any, rows: dict[tuple[str, str], list[Row]]) -> None:
    """Rates over the amount of work."""
    found = {name: some for (kind, name), some in rows.items() if kind == "sweep"}
    rate = {
        name: Spread.of(row.frames_per_s for row in some).median for name, some in found.items()
    }
    settings = {name: some[0].settings for name, some in found.items()}
    engines = [name for name in found if "per_gpu" in settings[name]]
    for what, key in (("avatars in turn", "avatars"), ("frames of a sound", "frames")):
        names = [name for name in found if key in settings[name] and name not in engines]
        if names:
            x = [int(settings[name][key]) for name in names]
            axis.plot(x, [rate[name] for name in names], "o-", label=what)
    for k, name in enumerate(engines):
        axis.axhline(rate[name], c=f"C{k + 3}", lw=0.8, ls="--", label=name)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("frames/s")
    axis.set_xlabel("how many")
    axis.legend(fontsize=8)


def _draw_hops(axis: Any, rows: dict[tuple[str, str], list[Row]]) -> None:
    """A frame's way."""
    row = next(some[-1] for some in rows.values() if some[-1].hops_ms)
    left = 0.0
    for k, (name, ms) in enumerate(row.hops_ms.items()):
        axis.barh(0, ms, left=left, color=f"C{k}", label=f"{name}: {ms:.2f} ms")
        left += ms
    axis.axvline(row.mean_ms, c="0.2", lw=1, label=f"as the clients saw it: {row.mean_ms:.2f} ms")
    axis.set_yticks([])
    axis.set_ylim(-1.5, 0.6)
    axis.set_xlabel("from a frame's last needed sample to its bytes, ms")
    axis.legend(fontsize=8, ncols=3, loc="lower left")


def _draw_time(axis: Any, rows: dict[tuple[str, str], list[Row]]) -> None:
    """Processor time of a frame, by who spends it and on what."""
    found = {
        name: _times(some[-1])
        for (kind, name), some in rows.items()
        if kind in FAST and some[-1].cpu_ms_per_frame
    }
    names = list(found)[::-1]
    left = [0.0] * len(names)
    for k, role in enumerate(dict.fromkeys(r for times in found.values() for r in times)):
        values = [found[n].get(role, 0.0) for n in names]
        axis.barh(names, values, left=left, label=role, color=COLOURS[k % len(COLOURS)])
        left = [a + b for a, b in zip(left, values, strict=True)]
    axis.set_xlabel("processor time of a frame, ms")
    axis.legend(fontsize=8)


def _times(row: Row) -> dict[str, float]:
    """The engine's processor time by part, and everyone else's."""
    parts = {f"engine: {k}": v for k, v in row.engine_ms_per_frame.items() if v > 0.005}
    rest = row.cpu_ms_per_frame.get("engine", 0.0) - sum(parts.values())
    others = {k: v for k, v in row.cpu_ms_per_frame.items() if k != "engine"}
    return parts | {"engine: the rest": max(rest, 0.0)} | others
