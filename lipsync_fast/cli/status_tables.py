# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast status --full``: tables, or lines where a terminal is too narrow."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from lipsync_fast.console import clock
from lipsync_fast.ipc.status import (
    AvatarStatus,
    EngineStatus,
    FrontStatus,
    GatewayStatus,
    ServerStatus,
)

TEXT = "avatar", "engine", "front", "gateway", "device", "state", "refused", "errors", "ports"
"""Columns that begin at the left."""
KEPT = ("found", "missed", "kept", "refused", "evicted")
"""What engines count of frames of utterances that are kept."""


def as_tables(status: ServerStatus) -> RenderableType:
    """The status for people."""
    ports = ", ".join(map(str, status.ports))
    loads = [front.load for front in status.fronts]
    head = (
        f"lipsync-fast {status.version}, process {status.pid}: {status.state} for "
        f"{clock(status.uptime_s)} on {status.host}, streams {ports}, HTTP {status.http_port}\n"
        f"{sum(load.sessions for load in loads)} sessions, "
        f"{sum(load.speaking for load in loads)} of {status.speakers} speaking, "
        f"{status.frames_per_s:.1f} frames/s sent, "
        f"{status.capacity:.0f} frames/s can be made; "
        f"default avatar {status.default_avatar}"
    )
    counts = [load.utterances for load in loads]
    hits, misses = (sum(each.get(kind, 0) for each in counts) for kind in ("hits", "misses"))
    if hits or misses:
        size = max((e.load.store_bytes for e in status.engines), default=0)
        head += f"\n{hits} utterances were known, {misses} were not; {size / 1e6:.0f} MB are kept"
    if status.ignored:
        head += f"; {status.ignored} control messages could not be read"
    tables = [*_avatars(status.avatars), *_engines(status.engines), *_fronts(status.fronts)]
    tables += _gateways(status.gateways)
    return Group(Text(head), *tables)


class Table:
    """A table; where the terminal is too narrow for it, a paragraph for each row."""

    def __init__(self, *columns: str) -> None:
        self._columns, self._rows = columns, list[tuple[str, ...]]()

    def add(self, *cells: object) -> None:
        """One more row."""
        self._rows.append(tuple(map(str, cells)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [self._columns, *self._rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._columns))]
        if sum(widths) + 2 * len(widths) <= options.max_width:
            yield self._as_table()
            return
        for row in self._rows:
            facts = zip(self._columns[1:], row[1:], strict=True)
            yield Text(f"{row[0]}: " + ", ".join(f"{name} {cell}" for name, cell in facts))

    def _as_table(self) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in self._columns:
            text = column in TEXT
            table.add_column(column, justify="left" if text else "right", overflow="fold")
        for row in self._rows:
            table.add_row(*map(Text, row))
        return table


def _avatars(avatars: list[AvatarStatus]) -> list[Table]:
    table = Table("avatar", "version", "state", "for", "uses", "engines", "cached", "shared")
    for a in avatars:
        if a.state == "unloaded":
            table.add(a.name, "-", a.state, "-", "-", "-", "-", "-")
            continue
        table.add(
            a.name, a.version, a.state, clock(a.loaded_s), a.uses, len(a.engines),
            f"{a.cached_bytes / 1e6:.0f} MB", f"{a.shared_bytes / 1e6:.0f} MB",
        )  # fmt: skip
    return [table] if avatars else []


def _engines(engines: list[EngineStatus]) -> list[Table]:
    state = Table("engine", "device", "state", "pid", "up", "restarts", "avatars", "frames/s")
    work = Table(
        "engine", "waiting", "oldest ms", "made", "skipped", "failed", "dropped", "damaged"
    )
    kept = Table("engine", "inferences", "H.264", "found", "missed", "kept", "refused", "evicted")
    kinds = list(dict.fromkeys(kind for e in engines for kind in e.load.cache_bytes))
    on_gpu = any(e.load.device_memory_total for e in engines)
    caches = Table("engine", *kinds, *(["GPU memory"] if on_gpu else []))
    for e in engines:
        load = e.load
        rate = f"{load.frames_per_s:.1f} of {e.capacity:.0f}"
        state.add(
            e.name, e.device, _state(e), e.pid, clock(e.uptime_s), e.restarts,
            len(e.avatars), rate,
        )  # fmt: skip
        work.add(
            e.name, load.waiting + load.in_flight, f"{load.oldest_ms:.0f}", load.made,
            load.skipped, load.failed, load.dropped, load.damaged,
        )  # fmt: skip
        counts = [load.store.get(kind, 0) for kind in KEPT]
        kept.add(e.name, load.inferences, load.encoded, *counts)
        held = [f"{load.cache_bytes.get(kind, 0) / 1e6:.0f} MB" for kind in kinds]
        if on_gpu:
            used, total = load.device_memory_used, load.device_memory_total
            held.append(f"{used / 1e9:.1f} of {total / 1e9:.1f} GB" if total else "-")
        caches.add(e.name, *held)
    return [state, work, kept, *([caches] if kinds or on_gpu else [])]


def _state(engine: EngineStatus) -> str:
    """What an engine does; of a lost one, why, and when it is tried again."""
    if engine.state == "gone":
        return f"lost ({engine.reason}), again in {engine.retry_s:.1f} s"
    return f"{engine.state} (before: {engine.reason})" if engine.reason else engine.state


def _fronts(fronts: list[FrontStatus]) -> list[Table]:
    state = Table("front", "state", "pid", "up", "restarts", "connections", "sessions", "speaking")
    work = Table(
        "front", "frames/s", "latency ms", "late", "skipped", "sent again", "refused", "errors"
    )
    for f in fronts:
        load = f.load
        state.add(
            f.name, f.state, f.pid, clock(f.uptime_s), f.restarts, load.connections,
            load.sessions, load.speaking,
        )  # fmt: skip
        latency = ", ".join(f"{name} {value:.0f}" for name, value in load.latency_ms.items())
        work.add(
            f.name, f"{f.frames_per_s:.1f}", latency or "-", load.late, load.skipped,
            load.redispatched, _reasons(load.refused), _reasons(load.errors),
        )  # fmt: skip
    return [state, work]


def _gateways(gateways: list[GatewayStatus]) -> list[Table]:
    if not gateways:
        return []
    state = Table("gateway", "state", "pid", "up", "restarts", "ports", "links", "calls", "begun")
    work = Table("gateway", "pictures", "sent", "refused", "failed")
    for g in gateways:
        load = g.load
        doing = f"{g.state} (before: {g.reason})" if g.reason else g.state
        ports = [f"{name} {port}" for name, ports in g.ports.items() for port in ports]
        state.add(
            g.name, doing, g.pid, clock(g.uptime_s), g.restarts, ", ".join(ports), load.links,
            sum(load.calls.values()), sum(load.begun.values()),
        )  # fmt: skip
        sent = f"{sum(load.bytes.values()) / 1e6:.1f} MB"
        work.add(
            g.name, sum(load.pictures.values()), sent, _reasons(load.refused),
            _reasons(load.failed),
        )  # fmt: skip
    return [state, work]


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "0"
