# SPDX-License-Identifier: Apache-2.0
"""The goals, and what a report's values say of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Parts = Mapping[str, Mapping[str, Any]]
"""Values of each part."""
LIVE_P99_MS = 40.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Attributes:
        what: the goal is about.
        goal: in words.
        found: in words.
        verdict: "met", "missed", "aim reached" or "not measured".
    """

    what: str
    goal: str
    found: str
    verdict: str


def _at(parts: Parts, *where: str) -> Any:
    """A value by its path, None where something on the way is missing."""
    place: Any = parts
    for name in where:
        if not isinstance(place, Mapping) or name not in place:
            return None
        place = place[name]
    return place


def _rows(parts: Parts, *where: str) -> dict[str, Any]:
    """What there is in a place of the values, by name."""
    found = _at(parts, *where)
    return dict(found) if isinstance(found, Mapping) else {}


def _number(place: Any, *where: str) -> float | None:
    """A number by its path."""
    value = _at(place, *where)
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good else None


def throughput(parts: Parts) -> Line:
    """Frames a second of the reference network, from ring to ring."""
    best: float | None = None
    how = ""
    for name, row in _rows(parts, "engine", "reference", "closed loop").items():
        rate = _number(row, "frames_per_s")
        if rate is not None and (best is None or rate > best):
            best, how = rate, f"{name} at a time"
    rate = _number(parts, "engine", "reference", "free", "frames_per_s")
    if rate is not None and (best is None or rate > best):
        best, how = rate, "free-running"
    words = "" if best is None else f"{best:.0f} frames/s ({how})"
    goal = "at least 2,400, aim 6,000"
    return _line("720p frames/s, reference network, ring to ring", goal, words, best, 2400, 6000)


def live(parts: Parts) -> Line:
    """How many sessions had their frames in time."""
    most: float | None = None
    tried = []
    for name, row in _rows(parts, "live", "sessions").items():
        p99 = _number(row, "p99_ms")
        if p99 is None or not name.isdecimal():
            continue
        lost = _number(row, "lost")
        tried.append(f"{name}: {p99:.1f} ms" + (f", {lost:.0f} lost" if lost else ""))
        if p99 < LIVE_P99_MS and lost == 0:
            most = max(most or 0, int(name))
    if tried and most is None:
        most = 0
    words = "" if most is None else f"{most:.0f} sessions ({'; '.join(tried)})"
    goal = f"at least 90, aim 240, with p99 < {LIVE_P99_MS:.0f} ms and none lost"
    what = "live 25 frames/s sessions, last needed sample to ring"
    return _line(what, goal, words, most, 90, 240)


def single(parts: Parts) -> Line:
    """A batch of one."""
    p50, p99 = (_number(parts, "engine", "reference", "single", n) for n in ("p50_ms", "p99_ms"))
    words = "" if p50 is None or p99 is None else f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    what = "batch of one, last needed sample to JPEG bytes"
    return _line(what, "at most 10 ms (p99)", words, p99 if words else None, 10, None, least=False)


def start(parts: Parts) -> Line:
    """From a process's birth to frames, and to all captured graphs."""
    first, whole = (
        _number(parts, "engine", "reference", "start", n) for n in ("first_frame_s", "all_graphs_s")
    )
    words, worst = "", None
    if first is not None and whole is not None:
        words = f"first frame {first:.1f} s, all graphs {whole:.1f} s"
        # One number for two bounds: how far the worse of both is into what it may take.
        worst = max(first / 4, whole / 8)
    goal = "first frame served in at most 4 s, all graphs captured in at most 8 s"
    return _line("start", goal, words, worst, 1, None, least=False)


def memory(parts: Parts) -> Line:
    """Device memory of one more avatar."""
    mb = _number(parts, "engine", "reference", "memory", "further_avatar_mb")
    words = "" if mb is None else f"{mb:.0f} MB"
    what = "device memory a further avatar, without its cache"
    return _line(what, "at most 100 MB", words, mb, 100, None, least=False)


def precision(parts: Parts) -> Line:
    """What fp16 costs in grey levels on the mouth."""
    worst, mean = (_number(parts, "parity", "precision", "fp16", n) for n in ("worst", "mean"))
    words, into = "", None
    if worst is not None and mean is not None:
        words = f"worst {worst:.0f}, mean {mean:.3f} grey levels"
        into = max(worst / 2, mean / 0.1)
    goal = "at most 2 grey levels at worst on the mouth, mean at most 0.1"
    return _line("fp16 against fp32", goal, words, into, 1, None, least=False)


def _line(
    what: str,
    goal: str,
    found: str,
    value: float | None,
    bound: float,
    aim: float | None,
    *,
    least: bool = True,
) -> Line:
    if value is None:
        return Line(what, goal, "not measured", "not measured")
    if aim is not None and value >= aim:
        return Line(what, goal, found, "aim reached")
    met = value >= bound if least else value <= bound
    return Line(what, goal, found, "met" if met else "missed")


GOALS: tuple[Callable[[Parts], Line], ...] = (
    throughput,
    live,
    single,
    start,
    memory,
    precision,
)


def table(parts: Parts) -> list[Line]:
    """All goals, whatever of the values is there."""
    return [goal(parts) for goal in GOALS]
