# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast status`` at a glance: one screen of 24 lines of 100 columns, however large the
server is. What there is too much of is counted; the tables have all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from lipsync_fast.console import clock
from lipsync_fast.ipc.status import EngineStatus, ServerStatus

WIDTH, LINES = 100, 24
MOST = 8
"""Lines about engines, and about fronts and the gateway."""
NAME = 10
"""Columns of what a line is about."""


def as_screen(status: ServerStatus) -> str:
    """The status as lines of text."""
    lines = [*_server(status), *_engines(status.engines), *_others(status), *_counts(status)]
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines)


def _line(about: str, *facts: str) -> str:
    return f"{about:{NAME}}{', '.join(fact for fact in facts if fact)}"


def _server(status: ServerStatus) -> Iterator[str]:
    ports, loads = ", ".join(map(str, status.ports)), [f.load for f in status.fronts]
    yield (
        f"lipsync-fast {status.version}: {status.state} for {clock(status.uptime_s)} "
        f"on {status.host}, streams {ports}, HTTP {status.http_port}"
    )
    encoding = sum(load.encoding for load in loads)
    yield _line(
        "speaking",
        f"{sum(load.speaking for load in loads)} of {status.speakers}",
        f"{encoding:.1f} more for H.264" if encoding else "",
        f"{sum(load.sessions for load in loads)} sessions",
        f"{sum(load.connections for load in loads)} connections",
    )
    slowest = {
        name: max(load.latency_ms.get(name, 0.0) for load in loads)
        for name in ("p50", "p95", "p99")
        if any(load.latency_ms for load in loads)
    }
    yield _line(
        "pictures",
        f"{status.frames_per_s:.0f}/s sent",
        f"{status.capacity:.0f}/s can be made",
        "from sound to picture " + ", ".join(f"{n} {ms:.0f}" for n, ms in slowest.items()) + " ms"
        if slowest
        else "",
    )
    strides = max((load.speech_stride for load in loads), default=1)
    yield _line(
        "",
        f"{sum(load.late for load in loads)} late",
        f"{sum(load.skipped for load in loads)} skipped",
        f"{sum(load.left_out for load in loads)} left out",
        f"{sum(load.redispatched for load in loads)} sent again",
        f"one in {strides} is shown of what is spoken" if strides > 1 else "",
    )
    using = [a for a in status.avatars if a.state != "unloaded"]
    named = sorted(using, key=lambda a: (a.name != status.default_avatar, -a.uses))
    shown = [
        f"{a.name} {a.version}" + ("" if a.state == "current" else f" {a.state}") + f" ({a.uses})"
        for a in named
    ]
    yield _line("avatars", *_few(shown, WIDTH - NAME))


def _engines(engines: list[EngineStatus]) -> Iterator[str]:
    """Those in trouble first, where there are many."""
    lines = []
    for e in sorted(engines, key=lambda e: (not e.reason, e.state == "spare")):
        load = e.load
        state: str = e.state
        if e.state == "gone":
            state = f"lost ({e.reason}), again in {e.retry_s:.1f} s"
        elif e.reason:
            state += f" (before: {e.reason})"
        used, total = load.device_memory_used, load.device_memory_total
        lines.append(
            _line(
                e.name,
                f"{state} on {e.device}",
                f"{load.frames_per_s:.0f} of {e.capacity:.0f}/s" if e.state == "ready" else "",
                f"{waiting} wait" if (waiting := load.waiting + load.in_flight) else "",
                f"{load.failed} failed" if load.failed else "",
                f"{load.dropped} dropped" if load.dropped else "",
                f"{used / 1e9:.1f} of {total / 1e9:.1f} GB" if total else "",
                f"replaced {e.restarts} times" if e.restarts else "",
            )
        )
    return _bounded(lines, "engines")


def _others(status: ServerStatus) -> Iterator[str]:
    lines = [
        _line(
            f.name,
            f.state,
            f"{f.load.sessions} sessions",
            f"{f.frames_per_s:.0f}/s sent",
            f"replaced {f.restarts} times" if f.restarts else "",
        )
        for f in status.fronts
    ]
    for g in status.gateways:
        ports = [f"{name} {port}" for name, ports in g.ports.items() for port in ports]
        lines.append(
            _line(
                g.name,
                f"{g.state} (before: {g.reason})" if g.reason else g.state,
                *ports,
                f"{sum(g.load.calls.values())} calls",
                f"replaced {g.restarts} times" if g.restarts else "",
            )
        )
    return _bounded(lines, "processes")


def _counts(status: ServerStatus) -> Iterator[str]:
    """What was refused, and what went wrong, since the server began."""
    loads = [front.load for front in status.fronts]
    for about, counts in (
        ("refused", [load.refused for load in loads]),
        ("errors", [load.errors for load in loads]),
    ):
        total = sum(map(Counter[str], counts), Counter[str]())
        if total:
            named = [f"{reason} {count}" for reason, count in total.most_common()]
            yield _line(about, *_few(named, WIDTH - NAME))


def _bounded(lines: list[str], what: str) -> Iterator[str]:
    kept = lines if len(lines) <= MOST else lines[: MOST - 1]
    yield from kept
    if len(kept) < len(lines):
        yield _line("", f"and {len(lines) - len(kept)} more {what}; --full shows all")


def _few(facts: Iterable[str], width: int) -> Iterator[str]:
    """As many as stand in a line, and how many more there are."""
    left, facts = width - len(", and 10000 more"), list(facts)
    for n, fact in enumerate(facts):
        left -= len(fact) + 2
        if n and left < 0:
            yield f"and {len(facts) - n} more"
            return
        yield fact
